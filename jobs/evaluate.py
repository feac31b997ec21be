"""Compares teacher, base and distilled student, and copying: `python -m jobs.evaluate`.

All systems get the same test rows; both students the same prompt, precision and decoding (greedy).
Writes <root>/<run>/predictions/<system>.parquet and <root>/<run>/metrics.json.
"""

import logging
from typing import Any

from common.command import run_job
from common.data import TestRows, load_test_rows
from common.evaluation import METRICS_FILE, SYSTEMS, score_systems
from common.labeler import fingerprint_teacher
from common.manifest import (
    Fingerprint,
    check_part,
    hash_content,
    is_done,
    require_manifest,
    write_manifest,
)
from common.settings import Settings
from common.storage import RunStorage
from common.student import (
    fingerprint_student,
)
from common.systems import ask_students, ask_teacher, copy_input, make_prediction_table
from common.tasks import Task, load_task

SECTIONS = ("run", "task", "storage", "data", "teacher", "student", "evaluate")
STEP = "predictions"

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Makes and scores the predictions of all systems.

    Raises:
        InputError: there is no adapter, or no test row.
        TeacherRefusedError: see `common.errors`.
    """
    storage, task = RunStorage(settings), load_task(settings.task)
    adapter = require_manifest(storage, "adapter", "python -m jobs.train")
    labels = require_manifest(storage, "labels", "python -m jobs.label")
    check_part(storage.url + "/adapter", adapter, fingerprint_student(settings, task))
    check_part(storage.url + "/labels", labels, fingerprint_teacher(settings, task))
    test = load_test_rows(settings, task)
    fingerprint = make_fingerprint(settings, task, test, adapter)
    if is_done(storage, STEP, fingerprint):
        log.info("evaluate: already done, see %s/%s", storage.url, METRICS_FILE)
        return
    log.info("evaluate: %d test rows, %d dropped as seen in train", len(test.rows), test.leaked)
    predictions = {"copy": copy_input(test.rows)}
    predictions["teacher"] = ask_teacher(settings, task, storage, test.rows)
    predictions |= ask_students(settings, task, storage, adapter["files"], test.rows)
    for system, responses in predictions.items():
        storage.write_table(f"{STEP}/{system}.parquet", make_prediction_table(test.rows, responses))
    texts = {system: [r.text for r in responses] for system, responses in predictions.items()}
    metrics = score_systems(task, test, texts)
    storage.write_json(METRICS_FILE, metrics)
    write_manifest(
        storage, STEP, fingerprint, counts=metrics["rows"], settings=settings.describe(SECTIONS)
    )
    figures = ((name, metrics["systems"][name][metrics["main_metric"]]) for name in SYSTEMS)
    scores = ", ".join(f"{name} {score['value']:.1%}" for name, score in figures)
    log.info("evaluate: %s: %s", metrics["main_metric"], scores)


def make_fingerprint(
    settings: Settings, task: Task, test: TestRows, adapter: dict[str, Any]
) -> Fingerprint:
    """What the predictions depend on."""
    return {
        "adapter": hash_content(adapter["fingerprint"]),
        "test_rows": hash_content([[row.id, row.references] for row in test.rows]),
        "task": f"{task.name} {task.fingerprint}",
        "evaluate.max_new_tokens": settings.evaluate.max_new_tokens,
    }


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
