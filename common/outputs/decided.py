"""What the evaluation has found out for the outputs: a calibration, and a threshold."""

from dataclasses import dataclass
from typing import Any

from common.errors import InputError
from common.evaluation.confidence import Calibration
from common.evaluation.decision import Decision, read_calibration
from common.evaluation.scores import METRICS_FILE
from common.run.manifest import list_changes, read_manifest
from common.run.run import Run
from common.run.steps import PREDICTIONS
from common.teacher.requests import fingerprint_teacher


@dataclass(frozen=True)
class Decided:
    """Each part is None if there is none; `threshold` only with a cascade."""

    calibration: Calibration | None = None
    threshold: float | None = None
    usual_confidence: float | None = None


def read_decision(run: Run, adapter: str) -> Decided:
    """What an evaluation of the adapter, by the same settings, has found out.

    Raises an InputError if the cascade asks for what there is not.
    """
    cascade, place = run.settings.predict.cascade, f"{run.storage.url}/{METRICS_FILE}"
    metrics = _read_metrics(run, adapter, with_teacher=cascade != "off")
    confidence = metrics.get("confidence") if metrics else None
    if cascade != "off" and confidence is None:
        raise InputError(
            f"DISTILL_PREDICT__CASCADE={cascade!r} needs the confidence of this adapter's student "
            f"by these settings, and {place} has none; run python -m jobs.evaluate, with more test "
            "rows if it has run"
        )
    if metrics is None or confidence is None:
        return Decided()
    usual = sum(sure * rows for sure, _, rows in confidence["bins"]) / max(1, confidence["rows"])
    threshold = None if cascade in ("off", "auto") else float(cascade)
    if cascade == "auto":
        threshold = _read_threshold(metrics, place)
    return Decided(read_calibration(confidence), threshold, usual)


def _read_metrics(run: Run, adapter: str, with_teacher: bool) -> Decision | None:
    """The metrics, if they are of this adapter, of these settings, and of this teacher."""
    scored = read_manifest(run.storage, PREDICTIONS)
    if scored is None or not run.storage.exists(METRICS_FILE):
        return None
    now: dict[str, Any] = {
        "adapter": adapter,
        **run.settings.fingerprint("evaluate", ["max_new_tokens", "samples"]),
    }
    teacher = fingerprint_teacher(run.settings, run.task)
    if with_teacher:
        now |= teacher
    before = {
        key: value
        for key, value in scored.fingerprint.items()
        if key == "adapter" or key.startswith("evaluate.") or (with_teacher and key in teacher)
    }
    if list_changes(before, now):
        return None
    decision: Decision = run.storage.read_json(METRICS_FILE, Decision)
    return decision


def _read_threshold(metrics: Decision, place: str) -> float:
    cascade = metrics.get("cascade")
    chosen = cascade and cascade["chosen"]
    if chosen is None or not (cascade and cascade["holds"]):
        found = "names no confidence" if chosen is None else "cannot confirm the confidence"
        raise InputError(
            f"DISTILL_PREDICT__CASCADE=auto: {place} {found} from which the student is as good as "
            "the teacher; raise DISTILL_EVALUATE__MARGIN or take more test rows and evaluate "
            "again, or set a number"
        )
    return chosen["threshold"]
