"""The table of metrics.

A metric measures statistics of each row, and combines their sums to a value, so the bootstrap
measures no row again. A new metric is a function and a line in `METRICS`; a task file names its
metrics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.metrics.edits import (
    combine_f05,
    combine_precision,
    combine_recall,
    count_edits,
    edits_too_little,
    edits_too_much,
)
from common.metrics.json_values import combine_f1, count_fields, json_match
from common.metrics.overlap import combine_chrf, combine_gleu, count_chrf, measure_gleu, thin_gleu
from common.metrics.statistics import Array, Combine, divide
from common.metrics.text import normalize

Measure = Callable[[Sequence[str], Sequence[str], Sequence[Sequence[str]]], Array]
"""From texts, predictions and each one's references to (rows, statistics)."""
MeasureRow = Callable[[str, str, Sequence[str]], Sequence[float] | float]

_MAX_CLASSES = 500


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        title: its name in the report.
        measure: see `Measure`.
        combine: from sums over rows, (…, statistics), to values, (…).
        is_share: the value is the mean of a 0 or 1 per row.
        is_better_low: lower is better.
        of_edits: it compares edits, see `common.metrics.edits`.
        thin: drops statistics that the bootstrap does not need.
    """

    title: str
    measure: Measure
    combine: Combine
    is_share: bool = False
    is_better_low: bool = False
    of_edits: bool = False
    thin: Callable[[Array], Array] = lambda rows: rows


def measure_each(function: MeasureRow) -> Measure:
    """A measure that applies a function to each row."""

    def measure(
        texts: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Array:
        rows = zip(texts, predictions, references, strict=True)
        found = np.array([function(*row) for row in rows], dtype=np.float64)
        return found.reshape(len(texts), -1)

    return measure


def share(
    title: str, function: MeasureRow, is_better_low: bool = False, of_edits: bool = False
) -> Metric:
    """The share of rows for which a function gives 1, not 0."""

    def measure(
        texts: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Array:
        hits = measure_each(function)(texts, predictions, references)
        return np.hstack([hits, np.ones_like(hits)])

    return Metric(
        title,
        measure,
        _divide_first_two,
        is_share=True,
        is_better_low=is_better_low,
        of_edits=of_edits,
    )


def exact_match(text: str, prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction equals a reference; else 0."""
    return float(prediction in references)


def exact_match_normalized(text: str, prediction: str, references: Sequence[str]) -> float:
    """Exact match of normalised texts, see `normalize`."""
    return float(normalize(prediction) in {normalize(reference) for reference in references})


def accuracy(text: str, prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction names a reference's class, in any case; else 0."""
    return float(_name_class(prediction) in {_name_class(r) for r in references})


def measure_classes(
    texts: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Array:
    """Hits, predictions and references of each class of the references, by name.

    A row's class is the predicted one if a reference has it, else the first reference's.

    Raises:
        InputError: the references have too many classes.
    """
    del texts
    answers = [[_name_class(r) for r in row] or [""] for row in references]
    found = sorted({name for row in answers for name in row})
    if len(found) > _MAX_CLASSES:
        raise InputError(
            f"macro_f1 is for classification, and the references name more than {_MAX_CLASSES} "
            "classes; remove it from the task's metrics"
        )
    classes = {name: 3 * i for i, name in enumerate(found)}
    statistics = np.zeros((len(predictions), 3 * len(classes)))
    for i, (prediction, names) in enumerate(zip(predictions, answers, strict=True)):
        made = _name_class(prediction)
        wanted = made if made in names else names[0]
        statistics[i, classes[wanted]] = made == wanted
        statistics[i, classes[wanted] + 2] = 1
        if made in classes:
            statistics[i, classes[made] + 1] = 1
    return statistics


def combine_macro_f1(sums: Array) -> Array:
    """The mean F1 of the classes that have rows, from 0 to 1.

    Source: Y. Yang, X. Liu, A re-examination of text categorization methods (SIGIR 1999).
    """
    hits, made, wanted = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    scores = divide(2 * hits, made + wanted)
    mean: Array = scores.sum(-1) / np.maximum(((made + wanted) > 0).sum(-1), 1)
    return mean


def _divide_first_two(sums: Array) -> Array:
    return divide(sums[..., 0], sums[..., 1])


def _name_class(text: str) -> str:
    return normalize(text).casefold()


def _of_edits(title: str, combine: Combine) -> Metric:
    return Metric(f"{title} (own token diff)", measure_each(count_edits), combine, of_edits=True)


METRICS: dict[str, Metric] = {
    "exact_match": share("Exact match", exact_match),
    "exact_match_normalized": share("Exact match, normalised", exact_match_normalized),
    "gleu": Metric("GLEU", measure_gleu, combine_gleu, thin=thin_gleu),
    "chrf": Metric("chrF", measure_each(count_chrf), combine_chrf),
    "edit_precision": _of_edits("Edit precision", combine_precision),
    "edit_recall": _of_edits("Edit recall", combine_recall),
    "edit_f05": _of_edits("Edit F0.5", combine_f05),
    "over_edit_rate": share(
        "Rows edited too much", edits_too_much, is_better_low=True, of_edits=True
    ),
    "under_edit_rate": share(
        "Rows edited too little", edits_too_little, is_better_low=True, of_edits=True
    ),
    "json_match": share("JSON match", json_match),
    "json_field_f1": Metric("F1 of JSON fields", measure_each(count_fields), combine_f1),
    "accuracy": share("Accuracy", accuracy),
    "macro_f1": Metric("Macro F1 of the references' classes", measure_classes, combine_macro_f1),
}
