"""Answers inputs in bulk with the distilled student: `python -m jobs.predict`.

Reads DISTILL_PREDICT__SOURCE and <root>/<run>/adapter, and writes a row for each row of the source,
in its order, to <root>/<run>/outputs/<name>/part-*.parquet. Students on Ray answer, one per GPU.
With a cascade, the teacher answers where the student is not sure. A rerun does only the rest.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from common.command import run_job
from common.data.examples import Examples
from common.errors import InputError
from common.evaluation.confidence import Calibration
from common.evaluation.decision import read_calibration
from common.evaluation.scores import METRICS_FILE, Metrics
from common.labels.lanes.asking import ask_teacher
from common.outputs.drift import Drift, describe_drift, measure_drift
from common.outputs.fill import fill, find_unsure
from common.outputs.inputs import Inputs, check_settings, find_folder, load_inputs, open_outputs
from common.outputs.parts import OutputParts
from common.outputs.students import answer_blocks
from common.records import hash_content
from common.run.lock import RunLock, hold_run
from common.run.manifest import (
    Fingerprint,
    Manifest,
    check_same,
    read_manifest,
    require_manifest,
    write_manifest,
)
from common.run.run import Run, open_run
from common.run.steps import (
    ADAPTER,
    LABELS,
    PREDICTIONS,
    PredictSummary,
    TrainSummary,
    name_outputs,
)
from common.settings import Settings
from common.signals import deferring_signals
from common.student.prompt import fingerprint_student, load_tokenizer
from common.teacher.requests import fingerprint_teacher
from common.training.train_set import iterate_labels

SECTIONS = ("run", "task", "storage", "data", "teacher", "student", "evaluate", "predict")
_SAMPLE = 10_000
"""Texts that the drift is measured on."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decided:
    """What the evaluation has found out: a calibration and a threshold, each if there is one."""

    calibration: Calibration | None = None
    threshold: float | None = None
    usual_confidence: float | None = None


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
    decided = read_decision(run, adapter)
    inputs = load_inputs(settings, run.task)
    folder = find_folder(settings)
    step, url = name_outputs(folder), f"{storage.url}/{folder}"
    answers, whole = make_fingerprints(run, adapter, inputs, decided)
    if manifest := read_manifest(storage, step):
        ignoring = ("cascade",) if manifest.fingerprint.get("cascade") == "off" else ()
        check_same(url, manifest.fingerprint, whole, ignoring, "DISTILL_PREDICT__NAME")
        if dict(manifest.fingerprint) == dict(whole):
            log.info("predict: already done, see %s", url)
            return
    log.info("predict: %d rows, %d of them with a text of their own", len(inputs), inputs.distinct)
    blocks = inputs.list_blocks(settings.predict.part_rows)
    names = [block.name for block in blocks]
    parts = OutputParts(storage, folder, hash_content(answers))
    with hold_run(open_outputs(settings, folder), "predict") as lock:
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
        summary["seconds"] = round(time.monotonic() - started, 1)
        described = settings.describe(SECTIONS)
        write_manifest(storage, step, whole, summary, files=files, settings=described)
    report(summary, url)


def read_decision(run: Run, adapter: Manifest[TrainSummary]) -> Decided:
    """Raises an InputError if the cascade asks for what the evaluation has not found."""
    cascade, place = run.settings.predict.cascade, f"{run.storage.url}/{METRICS_FILE}"
    metrics: Metrics | None = None
    scored = read_manifest(run.storage, PREDICTIONS)
    if scored and scored.fingerprint.get("adapter") == adapter.identity:
        metrics = run.storage.read_json(METRICS_FILE)
    confidence = metrics.get("confidence") if metrics else None
    if cascade != "off" and confidence is None:
        raise InputError(
            f"DISTILL_PREDICT__CASCADE={cascade!r} needs the confidence of this adapter's student, "
            f"and {place} has none; run python -m jobs.evaluate, with more test rows if it has run"
        )
    if metrics is None or confidence is None:
        return Decided()
    usual = sum(sure * rows for sure, _, rows in confidence["bins"]) / confidence["rows"]
    threshold = None if cascade in ("off", "auto") else float(cascade)
    if cascade == "auto":
        chosen = metrics["cascade"]["chosen"]
        if chosen is None:
            raise InputError(
                f"DISTILL_PREDICT__CASCADE=auto: {place} names no confidence from which the "
                "student is as good as the teacher; raise DISTILL_EVALUATE__MARGIN and evaluate "
                "again, or set a number"
            )
        threshold = chosen["threshold"]
    return Decided(read_calibration(confidence), threshold, usual)


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
        by_teacher = {id: row.label or "" for id, row in rows.items() if row.status == "ok"}
        if left := len(unsure.texts) - len(by_teacher):
            log.warning("predict: it has none for %d, which keep the student's answers", left)
    if unsure.repeated or by_teacher:
        with deferring_signals() as signals:

            def check() -> None:
                signals.check()
                lock.check()

            fill(parts, names, unsure, by_teacher, check)


def summarize(
    run: Run, parts: OutputParts, names: Sequence[str], decided: Decided
) -> PredictSummary:
    """Counts the rows of all parts, and measures the drift on some of them."""
    rows, total = 0, 0.0
    by: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    sample: list[str] = []
    columns = ["text", "confidence", "answered_by", "error"]
    per_part = max(2, _SAMPLE // len(names))
    for table in parts.read_all(names, columns):
        rows += table.num_rows
        by.update(table["answered_by"].drop_null().to_pylist())
        errors.update(table["error"].drop_null().to_pylist())
        total += pc.sum(table["confidence"]).as_py() or 0.0
        sample += table["text"].to_pylist()[:per_part]
    answered = by.total()
    mean = total / answered if answered else None
    return {
        "rows": rows,
        "student": by["student"],
        "teacher": by["teacher"],
        "errors": dict(errors.most_common()),
        "threshold": decided.threshold,
        "mean_confidence": mean,
        "drift": find_drift(run, sample, mean, decided.usual_confidence),
    }


def find_drift(run: Run, texts: list[str], mean: float | None, usual: float | None) -> Drift:
    """Compares a sample of inputs with one of the labels; {} if there are too few of either."""
    labels = read_manifest(run.storage, LABELS)
    trained: list[str] = []
    if labels is not None:
        for row in iterate_labels(run.storage, labels.files):
            trained.append(row.text)
            if len(trained) == _SAMPLE:
                break
    if min(len(texts), len(trained)) < 2:
        return {}
    drift = measure_drift(texts, trained, run.task.label_rules.languages, mean, usual)
    for phrase in describe_drift(drift):
        log.warning("predict: the inputs are unlike the training texts: %s", phrase)
    return drift


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
