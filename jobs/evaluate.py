"""Compares teacher, base and distilled student, and copying: `python -m jobs.evaluate`.

All systems get the same test rows; the students the same prompt, precision and decoding (greedy);
the base student also gets the task's few-shot examples, as a system of its own. Writes
<root>/<run>/predictions/<system>.parquet, <root>/<run>/metrics.json, and results as
lm-evaluation-harness names them. Predictions that are there are not made again.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from common.command import run_job
from common.data.examples import TestRow, TestRows, load_test_rows
from common.evaluation.harness import write_results
from common.evaluation.predictions import STEP, read_predictions, write_predictions
from common.evaluation.scores import METRICS_FILE, score_systems
from common.evaluation.systems import (
    STUDENTS,
    ask_merged,
    ask_students,
    ask_teacher,
    copy_input,
    describe_system,
)
from common.labels.labeler import fingerprint_teacher
from common.records import hash_content
from common.run.lock import wait_for_release
from common.run.manifest import (
    Fingerprint,
    check_part,
    check_same,
    read_manifest,
    require_manifest,
    write_manifest,
)
from common.run.storage import RunStorage
from common.settings import Settings
from common.student.generation import Response
from common.student.memory import explaining_memory
from common.student.student import check_device, fingerprint_student
from common.tasks.model import Task, load_task
from common.training.merging import STEP as MERGED
from common.training.train_set import fingerprint_labels

SECTIONS = ("run", "task", "storage", "data", "teacher", "student", "evaluate")
_ADVICE = "one row alone is too much for it; lower DISTILL_EVALUATE__MAX_NEW_TOKENS"
_MERGED_ADVICE = "the merged student is not quantised; to leave it out, delete the run's merged/"

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Makes and scores the predictions of all systems.

    Raises:
        InputError: there is no adapter, or no test row.
        SettingsError: there is no GPU, or the memory does not suffice.
        TeacherRefusedError: see `common.errors`.
    """
    check_device(settings)
    storage, task = RunStorage(settings), load_task(settings.task)
    adapter = require_manifest(storage, "adapter", "python -m jobs.train")
    wait_for_release(storage, "evaluate")  # the train job may still be merging
    merged = read_manifest(storage, MERGED)
    labels = require_manifest(storage, "labels", "python -m jobs.label")
    check_part(storage.url + "/adapter", adapter, fingerprint_student(settings, task))
    check_part(storage.url + "/labels", labels, fingerprint_teacher(settings, task))
    check_part(storage.url + "/adapter", adapter, {"labels": fingerprint_labels(labels)})
    if merged is not None:
        check_same(storage.url + "/merged", merged["fingerprint"], adapter["fingerprint"])
    test = load_test_rows(settings, task)
    fingerprint = make_fingerprint(settings, task, test, adapter)
    systems = list_systems(task, has_merged=merged is not None)
    scored = {"systems": systems, "metrics": task.metrics}
    done = read_manifest(storage, STEP)
    if done is not None:
        check_same(f"{storage.url}/{STEP}", done["fingerprint"], fingerprint)
        if done.get("scored") == scored and storage.exists(METRICS_FILE):
            log.info("evaluate: already done, see %s/%s", storage.url, METRICS_FILE)
            return
    else:  # figures of other predictions may be there
        storage.remove(METRICS_FILE)
    log.info("evaluate: %d test rows, %d dropped as seen in train", len(test.rows), test.leaked)
    missing = [s for s in systems if read_predictions(storage, s, fingerprint) is None]
    for name, responses in ask(settings, task, storage, adapter, merged, test.rows, missing):
        write_predictions(storage, name, fingerprint, test.rows, responses)
    tables = {name: read_predictions(storage, name, fingerprint) for name in systems}
    found = {name: table for name, table in tables.items() if table is not None}
    predictions = {name: table["prediction"].to_pylist() for name, table in found.items()}
    log.info("evaluate: scoring %d systems", len(found))
    metrics = score_systems(task, test, predictions)
    for name, table in found.items():
        metrics["systems"][name] |= describe_system(settings, name, table, labels)
    storage.write_json(METRICS_FILE, metrics)
    described = settings.describe(SECTIONS)
    write_results(storage, task, metrics, test.rows, predictions, described)
    write_manifest(
        storage, STEP, fingerprint, counts=metrics["rows"], scored=scored, settings=described
    )
    main_metric = metrics["main_metric"]
    values = {name: figures[main_metric]["value"] for name, figures in metrics["systems"].items()}
    scores = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    log.info("evaluate: %s: %s", main_metric, scores)


def list_systems(task: Task, has_merged: bool) -> list[str]:
    """The systems that are compared."""
    students = [name for name in STUDENTS if name != "base_few_shot" or task.few_shot]
    return ["copy", "teacher", *students, *([MERGED] if has_merged else [])]


def ask(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    adapter: dict[str, Any],
    merged: dict[str, Any] | None,
    rows: Sequence[TestRow],
    systems: Sequence[str],
) -> Iterator[tuple[str, list[Response]]]:
    """The systems' answers, each as soon as it has them all; the teacher's first."""
    if "copy" in systems:
        yield "copy", copy_input(rows)
    if "teacher" in systems:
        yield "teacher", ask_teacher(settings, task, storage, rows)
    students = [name for name in systems if name in STUDENTS]
    with explaining_memory(_ADVICE):
        yield from ask_students(settings, task, storage, adapter["files"], rows, students)
    if merged is not None and MERGED in systems:
        with explaining_memory(_MERGED_ADVICE):
            yield MERGED, ask_merged(settings, task, storage, merged["files"], rows)


def make_fingerprint(
    settings: Settings, task: Task, test: TestRows, adapter: dict[str, Any]
) -> Fingerprint:
    """What the predictions depend on."""
    rows = [[row.id, row.references, row.groups] for row in test.rows]
    return {
        # a second training by the same settings need not give the same weights
        "adapter": hash_content([adapter["fingerprint"], adapter["finished_at"]]),
        "test_rows": f"{len(test.rows)}, {hash_content(rows)}",
        "few_shot": hash_content([shot.model_dump() for shot in task.few_shot]),
        **fingerprint_teacher(settings, task),
        "evaluate.max_new_tokens": settings.evaluate.max_new_tokens,
    }


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
