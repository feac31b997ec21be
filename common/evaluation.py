"""Scores predictions: every metric of every system, overall and by group."""

from collections.abc import Sequence
from typing import Any

from common.data import TestRow, TestRows
from common.metrics import METRICS, summarize
from common.tasks import Task

METRICS_FILE = "metrics.json"
SYSTEMS = ("copy", "base", "distilled", "teacher")
"""In the order in which they are shown."""


def score_systems(task: Task, test: TestRows, predictions: dict[str, list[str]]) -> dict[str, Any]:
    """The content of metrics.json.

    `systems` has, by system, each metric's value, n and interval, and the same by group; `gain` is
    distilled less base and `retention` distilled by teacher, both of the task's first metric.
    """
    systems = {name: _score_system(task, test.rows, texts) for name, texts in predictions.items()}
    main_metric = task.metrics[0]
    teacher, base, distilled = (
        systems[name][main_metric]["value"] for name in ("teacher", "base", "distilled")
    )
    return {
        "task": task.name,
        "main_metric": main_metric,
        "rows": {
            "test": len(test.rows),
            "duplicates": test.duplicates,
            "seen_in_train": test.leaked,
            "unusable": test.unusable,
        },
        "systems": systems,
        "gain": distilled - base,
        "retention": distilled / teacher if teacher else None,
    }


def _score_system(task: Task, rows: Sequence[TestRow], texts: Sequence[str]) -> dict[str, Any]:
    scores = {
        name: [METRICS[name](text, row.references) for row, text in zip(rows, texts, strict=True)]
        for name in task.metrics
    }
    groups = sorted({name for row in rows for name in row.groups})
    return {
        **{name: summarize(values) for name, values in scores.items()},
        "groups": {group: _score_group(rows, scores, group) for group in groups},
    }


def _score_group(
    rows: Sequence[TestRow], scores: dict[str, list[float]], group: str
) -> dict[str, Any]:
    members: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if group in row.groups:
            members.setdefault(row.groups[group], []).append(index)
    return {
        value: {name: summarize([s[i] for i in members[value]]) for name, s in scores.items()}
        for value in sorted(members)
    }


def format_table(metrics: dict[str, Any]) -> str:
    """The main metric of all systems, for a terminal."""
    name = metrics["main_metric"]
    lines = [f"{'system':<12}{name:>14}   {'95 % interval':<17}{'n':>6}"]
    for system in SYSTEMS:
        figures = metrics["systems"][system][name]
        low, high = figures["interval"]
        interval = f"{low:6.1%} - {high:6.1%}"
        lines.append(f"{system:<12}{figures['value']:>14.1%}   {interval:<17}{figures['n']:>6}")
    lines.append(f"The distilled student gains {100 * metrics['gain']:.1f} points over the base")
    if metrics["retention"] is not None:
        lines[-1] += f" and keeps {metrics['retention']:.0%} of the teacher's score"
    return "\n".join(lines) + "."
