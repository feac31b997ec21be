"""Scores predictions: metrics by system and group, and comparisons of systems."""

import logging
from collections.abc import Sequence
from typing import Any, Required

import numpy as np
from typing_extensions import TypedDict

from common.data.testset import TestRow, TestRows
from common.evaluation.cascade import CascadeFacts
from common.evaluation.confidence import ConfidenceFacts
from common.evaluation.decision import Decision, Savings, decide
from common.evaluation.systems import list_baselines, order_systems
from common.metrics.metrics import METRICS, Metric
from common.metrics.statistics import (
    Array,
    Bounds,
    bootstrap_interval,
    mcnemar_exact,
    paired_bootstrap,
    ratio_interval,
    smallest_difference,
    wilson_interval,
)
from common.tasks.rules import apply_rules
from common.tasks.task import Task

METRICS_FILE = "metrics.json"
FEW_ROWS = 30
"""Slices of fewer rows are marked."""
_MAX_SLICES = 200
"""A column with more values is not a group."""

log = logging.getLogger(__name__)

Statistics = dict[str, Array]
"""By metric, (rows, statistics)."""


class Figure(TypedDict, total=False):
    """A metric of one system: its value over `n` rows, with a 95 % confidence interval."""

    value: float | None
    n: int
    interval: Bounds | None
    is_small: bool


class Comparison(TypedDict, total=False):
    """The difference of two systems in a metric; see `compare`."""

    system: Required[str]
    than: Required[str]
    metric: Required[str]
    difference: float
    interval: Bounds
    p_value: float
    smallest: float | None


class MetricFacts(TypedDict, total=False):
    """See `Metric`."""

    title: str
    is_share: bool
    is_better_low: bool


class RowCounts(TypedDict, total=False):
    """The number of test rows, and of those left out."""

    test: Required[int]
    duplicates: int
    seen_in_train: int
    unusable: int


class Metrics(TypedDict, total=False):
    """The content of metrics.json; files of other versions may lack parts.

    `systems` has by key each metric's `Figure`, `groups` (by group, value and metric), and the
    runner's `SystemFacts`. `agreement` is the share of rows on which a system agrees with the
    teacher. Of the main metric, `gain` is distilled - base, `retention` distilled / teacher.
    `confidence` and `cascade` lack where too few test rows tell them.
    """

    task: Required[str]
    main_metric: Required[str]
    rows: Required[RowCounts]
    systems: Required[dict[str, dict[str, Any]]]
    metrics: dict[str, MetricFacts]
    comparisons: list[Comparison]
    agreement: dict[str, Figure]
    gain: float
    retention: float | None
    retention_interval: tuple[float, float] | None
    confidence: ConfidenceFacts
    cascade: CascadeFacts
    savings: Savings


def score_systems(
    task: Task,
    test: TestRows,
    predictions: dict[str, list[str]],
    signals: Array | None = None,
    margin: float = 0.0,
) -> Metrics:
    """Scores the predictions of each system.

    `signals` are the distilled student's, see `common.evaluation.confidence`, and `margin` is that
    of `common.evaluation.cascade`.
    """
    rows, names = test.rows, order_systems(predictions)
    measured = {name: _measure(task.metrics, rows, predictions[name]) for name in names}
    main = task.metrics[0]
    values = {name: _compute(METRICS[main], found[main]) for name, found in measured.items()}
    retention = values["distilled"] / values["teacher"] if values["teacher"] else None
    statistics = measured["distilled"][main], measured["teacher"][main]
    student, teacher = map(METRICS[main].thin, statistics)
    return {
        "task": task.name,
        "main_metric": main,
        "metrics": {name: _describe(METRICS[name]) for name in task.metrics},
        "rows": {
            "test": len(rows),
            "duplicates": test.duplicates,
            "seen_in_train": test.leaked,
            "unusable": test.unusable,
        },
        "systems": {
            name: {**_summarize_all(found), "groups": _score_groups(rows, found)}
            for name, found in measured.items()
        },
        "comparisons": [
            compare(metric, name, other, measured[name][metric], measured[other][metric])
            for name in names
            for other in list_baselines(name, names)
            if other in measured
            for metric in task.metrics
        ],
        "agreement": _measure_agreement(main, rows, predictions),
        "gain": values["distilled"] - values["base"],
        "retention": retention,
        "retention_interval": ratio_interval(student, teacher, METRICS[main].combine)
        if retention is not None
        else None,
        **_decide(task, rows, predictions["distilled"], signals, statistics, margin),
    }


def _decide(
    task: Task,
    rows: Sequence[TestRow],
    answers: Sequence[str],
    signals: Array | None,
    statistics: tuple[Array, Array],
    margin: float,
) -> Decision:
    judge = find_judge(task.metrics[0])
    is_right = _measure([judge], rows, answers)[judge][:, 0] > 0
    pairs = zip((row.text for row in rows), answers, strict=True)
    is_valid = np.array([apply_rules(*pair, task.label_rules)[1] is None for pair in pairs], bool)
    return decide(rows, task.metrics[0], signals, is_valid, is_right, statistics, margin)


def find_judge(main: str) -> str:
    """The metric that says of a row whether it is right: the main one if it is a share."""
    return main if METRICS[main].is_share else "exact_match"


def _measure(names: Sequence[str], rows: Sequence[TestRow], texts: Sequence[str]) -> Statistics:
    sources, references = [row.text for row in rows], [row.references for row in rows]
    return {name: METRICS[name].measure(sources, texts, references) for name in names}


def _describe(metric: Metric) -> MetricFacts:
    return {
        "title": metric.title,
        "is_share": metric.is_share,
        "is_better_low": metric.is_better_low,
    }


def _compute(metric: Metric, rows: Array) -> float:
    return float(metric.combine(rows.sum(0)))


def _summarize(metric: Metric, rows: Array) -> Figure:
    """Value, rows, and 95 % interval: Wilson's for a share, else the bootstrap's."""
    value = _compute(metric, rows)
    if metric.is_share:
        low, high = wilson_interval(value, len(rows))
    else:
        low, high = bootstrap_interval(metric.thin(rows), metric.combine)
    return {"value": value, "n": len(rows), "interval": [low, high]}


def _summarize_all(statistics: Statistics) -> dict[str, Figure]:
    return {name: _summarize(METRICS[name], rows) for name, rows in statistics.items()}


def _score_groups(
    rows: Sequence[TestRow], statistics: Statistics
) -> dict[str, dict[str, dict[str, Figure]]]:
    """Figures by group, value and metric; `is_small` marks those of fewer than 30 rows."""
    members: dict[str, dict[str, list[int]]] = {}
    for index, row in enumerate(rows):
        for group, value in row.groups.items():
            members.setdefault(group, {}).setdefault(value, []).append(index)
    for group in [name for name, values in members.items() if len(values) > _MAX_SLICES]:
        count = len(members.pop(group))
        log.warning("evaluate: %r has %d values, too many for a group", group, count)
    return {
        group: {
            value: {
                name: {**summary, "is_small": len(indices) < FEW_ROWS}
                for name, summary in _summarize_all(
                    {name: found[indices] for name, found in statistics.items()}
                ).items()
            }
            for value, indices in sorted(values.items())
        }
        for group, values in sorted(members.items())
    }


def compare(name: str, first: str, second: str, one: Array, other: Array) -> Comparison:
    """The difference of two systems on the same rows, with interval and p-value.

    For shares the p-value is McNemar's exact test's, and `smallest` the least significant
    difference, given the number of discordant rows. For other metrics the p-value is the paired
    bootstrap's, and `smallest` is half the width of its interval (None if 0).
    """
    metric = METRICS[name]
    interval, p_value = paired_bootstrap(metric.thin(one), metric.thin(other), metric.combine)
    smallest = (interval[1] - interval[0]) / 2 or None
    if metric.is_share:
        better, worse = (int(np.sum(d[:, 0] > 0)) for d in (one - other, other - one))
        p_value = mcnemar_exact(better, worse)
        smallest = smallest_difference(better + worse, len(one))
    return {
        "system": first,
        "than": second,
        "metric": name,
        "difference": _compute(metric, one) - _compute(metric, other),
        "interval": list(interval),
        "p_value": p_value,
        "smallest": smallest,
    }


def _measure_agreement(
    main: str, rows: Sequence[TestRow], predictions: dict[str, list[str]]
) -> dict[str, Figure]:
    """How often a system agrees with the teacher's answers that are not empty.

    By the task's first metric if it is a share, else by exact match.
    """
    kept = [i for i, text in enumerate(predictions["teacher"]) if text]
    answered = [TestRow(rows[i].id, rows[i].text, [predictions["teacher"][i]], {}) for i in kept]
    if not kept:
        return {}
    judge = find_judge(main)
    return {
        name: _summarize_all(_measure([judge], answered, [texts[i] for i in kept]))[judge]
        for name, texts in predictions.items()
        if name != "teacher"
    }
