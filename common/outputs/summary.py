"""What the outputs come to: rows by who answered, errors, drift."""

import logging
from collections import Counter
from collections.abc import Sequence

import pyarrow.compute as pc

from common.outputs.decided import Decided
from common.outputs.drift import Drift, describe_drift, measure_drift
from common.outputs.parts import OutputParts
from common.run.manifest import read_manifest
from common.run.run import Run
from common.run.steps import LABELS, PredictSummary
from common.training.train_set import iterate_labels

_SAMPLE = 10_000
"""Texts that the drift is measured on."""

log = logging.getLogger(__name__)


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
