"""Answers inputs in bulk with the distilled student: `python -m jobs.predict`.

Reads DISTILL_PREDICT__SOURCE and <root>/<run>/adapter, and writes a row for each row of the source,
in its order, to <root>/<run>/outputs/<name>/part-*.parquet. Students on Ray answer, one per GPU.
With a cascade, the teacher answers where the student is not sure. A rerun does only the rest.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

from common.command import run_job
from common.data.examples import Examples
from common.errors import DistillError
from common.labels.lanes.asking import ask_teacher, check_lost
from common.outputs.decided import Decided, read_decision
from common.outputs.fill import fill, find_unsure
from common.outputs.inputs import Inputs, check_settings, find_folder, load_inputs, open_outputs
from common.outputs.parts import OutputParts
from common.outputs.students import answer_blocks
from common.outputs.summary import summarize
from common.records import hash_content
from common.run.lock import RunLock, hold_run
from common.run.manifest import (
    Fingerprint,
    Manifest,
    check_same,
    read_manifest,
    remove_manifest,
    require_manifest,
    write_manifest,
)
from common.run.run import Run, open_run
from common.run.steps import ADAPTER, PredictSummary, Step, TrainSummary, name_outputs
from common.run.storage import RunStorage
from common.settings import Settings
from common.signals import deferring_signals
from common.student.prompt import fingerprint_student, load_tokenizer
from common.teacher.requests import fingerprint_teacher

SECTIONS = ("run", "task", "storage", "data", "teacher", "student", "evaluate", "predict")
MADE_FROM = "_made-from.json"
"""The fingerprint of outputs that are not finished."""

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Answers all inputs.

    Raises:
        SettingsError: no source is set, a required GPU is missing, or memory is too small.
        InputError: the adapter or the inputs are missing, or the cascade has no threshold.
        TeacherRefusedError, CostCapError: see `common.errors`.
    """
    check_settings(settings)  # before it waits
    run, started = open_run(settings), time.monotonic()
    storage = run.storage
    adapter = require_manifest(storage, ADAPTER)
    check_adapter(run, adapter)
    decided = read_decision(run, adapter.identity)
    inputs = load_inputs(settings, run.task)
    folder = find_folder(settings)
    step, url = name_outputs(folder), f"{storage.url}/{folder}"
    answers, whole = make_fingerprints(run, adapter, inputs, decided)
    if is_done(storage, step, whole):
        log.info("predict: already done, see %s", url)
        return
    log.info("predict: %d rows, %d of them with a text of their own", len(inputs), inputs.distinct)
    blocks = inputs.list_blocks(settings.predict.part_rows)
    names = [block.name for block in blocks]
    filled = hash_content(whole) if decided.threshold is not None else ""
    parts = OutputParts(storage, folder, hash_content(answers), filled)
    with hold_run(open_outputs(settings, folder), "predict") as lock:
        begin(storage, step, answers)
        done = parts.find_done(names)
        if done:
            log.info("predict: %d of %d parts are there", len(done), len(blocks))
        left = [block for block in blocks if block.name not in done]
        if left:
            answer_blocks(run, inputs, left, parts, decided.calibration, lock)
        finish(run, lock, parts, names, decided.threshold)
        lock.check()
        files = parts.keep(names)
        summary = summarize(run, parts, names, decided)
        if summary["rows"] != len(inputs):
            raise DistillError(f"{url} has {summary['rows']} of {len(inputs)} rows; run again")
        summary["seconds"] = round(time.monotonic() - started, 1)
        described = settings.describe(SECTIONS)
        write_manifest(storage, step, whole, summary, files=files, settings=described)
    report(summary, url)


def is_done(storage: RunStorage, step: Step[PredictSummary], whole: Fingerprint) -> bool:
    """Whether the outputs are finished, with this cascade.

    Raises an InputError if they are of other inputs or settings; a cascade may follow none.
    """
    manifest = read_manifest(storage, step)
    if manifest is None:
        return False
    ignoring = ("cascade",) if manifest.fingerprint.get("cascade") == "off" else ()
    url = f"{storage.url}/{step.folder}"
    check_same(url, manifest.fingerprint, whole, ignoring, "DISTILL_PREDICT__NAME")
    return dict(manifest.fingerprint) == dict(whole)


def begin(storage: RunStorage, step: Step[PredictSummary], answers: Fingerprint) -> None:
    """Notes what the student's answers depend on.

    Raises an InputError if there are unfinished outputs of other inputs or settings.
    """
    name = f"{step.folder}/{MADE_FROM}"
    if storage.exists(name):
        url = f"{storage.url}/{step.folder}"
        before = storage.read_json(name, dict[str, Any])
        check_same(url, before, answers, variable="DISTILL_PREDICT__NAME")
    storage.write_json(name, dict(answers))
    remove_manifest(storage, step)  # a cascade follows outputs without one


def check_adapter(run: Run, adapter: Manifest[TrainSummary]) -> None:
    """Raises an InputError unless the adapter is of the student of the settings."""
    now = fingerprint_student(run.settings, run.task, load_tokenizer(run.settings))
    before = {key: v for key, v in adapter.fingerprint.items() if key.startswith("student.")}
    check_same(f"{run.storage.url}/{ADAPTER.folder}", before, now)


def make_fingerprints(
    run: Run, adapter: Manifest[TrainSummary], inputs: Inputs, decided: Decided
) -> tuple[Fingerprint, Fingerprint]:
    """What the student's answers depend on, and what all outputs do."""
    calibration = decided.calibration
    answers = {
        "adapter": adapter.identity,
        "inputs": f"{len(inputs)}, {inputs.digest}",
        "label_rules": hash_content(run.task.label_rules.model_dump(mode="json")),
        "calibration": hash_content(calibration and vars(calibration)),
        **run.settings.fingerprint("evaluate", ["max_new_tokens", "samples"]),
        **run.settings.fingerprint("predict", ["keep", "part_rows"]),
    }
    if decided.threshold is None:
        return answers, answers | {"cascade": "off"}
    teacher = hash_content(fingerprint_teacher(run.settings, run.task))
    return answers, answers | {"cascade": f"{decided.threshold}, {teacher}"}


def finish(
    run: Run, lock: RunLock, parts: OutputParts, names: Sequence[str], threshold: float | None
) -> None:
    """Fills in what repeats a text, and what the teacher answers."""
    unsure = find_unsure(parts, names, threshold)
    by_teacher: dict[str, str] = {}
    if unsure.texts:
        log.info("predict: the teacher answers %d texts", len(unsure.texts))
        with hold_run(run.storage, "predict") as run_lock:
            rows = ask_teacher(run, run_lock, Examples.of(unsure.texts.values()))
        check_lost(run, list(rows.values()))
        by_teacher = {id: row.label or "" for id, row in rows.items() if row.status == "ok"}
        if left := len(unsure.texts) - len(by_teacher):
            log.warning("predict: it has none for %d, which keep the student's answers", left)
    if unsure.repeated or by_teacher:
        with deferring_signals() as signals:

            def check() -> None:
                signals.check()
                lock.check()

            fill(parts, names, unsure, by_teacher, check)


def report(summary: PredictSummary, url: str) -> None:
    """Logs what has come out."""
    errors = "".join(f", {count} {name}" for name, count in summary["errors"].items())
    log.info(
        "predict: %d rows, %d answered by the student, %d by the teacher%s; see %s",
        *(summary["rows"], summary["student"], summary["teacher"], errors, url),
        extra={"figures": summary},
    )


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
