"""The cascade: the student answers where it is sure enough, the teacher the rest.

The first half of the test rows chooses how sure is enough; the second half, which has had no say,
says whether that holds, and what it costs.
"""

from collections.abc import Sequence

import numpy as np
from typing_extensions import TypedDict

from common.evaluation.confidence import Mask
from common.metrics.metrics import Metric
from common.metrics.statistics import Array, Bounds, bootstrap_interval, paired_bootstrap

_SHARES = np.linspace(0, 1, 21)
"""The shares of local answers that are tried."""


class CascadePoint(TypedDict):
    """A threshold of the confidence, measured on the second half.

    Attributes:
        threshold: the student answers from this confidence on.
        share: of the rows that the student answers.
        value: the main metric, with its 95 % `interval`.
        difference: to the teacher alone, with its 95 % `difference_interval`.
    """

    threshold: float
    share: float
    value: float
    interval: Bounds
    difference: float
    difference_interval: Bounds


class CascadeFacts(TypedDict):
    """What a cascade brings.

    Attributes:
        margin: how much lower than the teacher's the score may be.
        points: from the teacher alone to the student alone.
        chosen: the point that the first half chose: the largest share at which it is not worse than
            the teacher by more than the margin. None: not even the smallest one is.
        holds: whether the second half agrees; None if nothing is chosen.
        rows: of the second half.
    """

    margin: float
    points: list[CascadePoint]
    chosen: CascadePoint | None
    holds: bool | None
    rows: int


def measure_cascade(
    metric: Metric, confidence: Array, student: Array, teacher: Array, first: Mask, margin: float
) -> CascadeFacts:
    """Measures the cascade at thresholds, and chooses one.

    Args:
        metric: the main one.
        confidence: of the student's answers, shape (rows,).
        student: the metric's statistics of its answers, (rows, statistics).
        teacher: those of the teacher's.
        first: which rows are of the first half.
        margin: see `CascadeFacts`.
    """
    thresholds = _list_thresholds(confidence[first])
    halves = [
        [_measure(metric, t, confidence[half], student[half], teacher[half]) for t in thresholds]
        for half in (first, ~first)
    ]
    number = _choose([_is_not_worse(point, margin) for point in halves[0]])
    chosen = None if number is None else halves[1][number]
    return {
        "margin": margin,
        "points": halves[1],
        "chosen": chosen,
        "holds": None if chosen is None else _is_not_worse(chosen, margin),
        "rows": int((~first).sum()),
    }


def _list_thresholds(confidence: Array) -> list[float]:
    """Thresholds from above all rows down to 0, at which about `_SHARES` of the rows are local."""
    inner = np.quantile(confidence, 1 - _SHARES[1:-1])
    return [float(t) for t in dict.fromkeys([np.nextafter(1.0, 2.0), *inner, 0.0])]


def _measure(
    metric: Metric, threshold: float, confidence: Array, student: Array, teacher: Array
) -> CascadePoint:
    is_local = confidence >= threshold
    mixed = np.where(is_local[:, None], student, teacher)
    difference, _ = paired_bootstrap(metric.thin(mixed), metric.thin(teacher), metric.combine)
    values = [float(metric.combine(rows.sum(0))) for rows in (mixed, teacher)]
    return {
        "threshold": threshold,
        "share": float(is_local.mean()),
        "value": values[0],
        "interval": list(bootstrap_interval(metric.thin(mixed), metric.combine)),
        "difference": values[0] - values[1],
        "difference_interval": list(difference),
    }


def _is_not_worse(point: CascadePoint, margin: float) -> bool:
    """Non-inferiority, at a level of 2.5 %: the interval's lower end is within the margin."""
    return point["difference_interval"][0] >= -margin


def _choose(passed: Sequence[bool]) -> int | None:
    """The last threshold before the first one that fails, other than the teacher alone.

    Tests in a fixed order that end at the first failure keep the level of a single one: W. Maurer
    et al., Multiple comparisons in drug clinical trials (1995).
    """
    number = next((n for n, is_good in enumerate(passed) if not is_good), len(passed)) - 1
    return number if number > 0 else None
