"""Reads metrics.json: whoever reads it, of whatever version, gets what its type says."""

from typing import Any

from typing_extensions import TypedDict

from common.evaluation.scores import METRICS_FILE, Figure, Metrics
from common.records import check_kind
from common.run.storage import RunStorage


class SystemFacts(TypedDict, total=False):
    """Unanswered rows by reason, cost, speed, precision and address of a system."""

    unanswered: dict[str, int]
    cost_usd_per_1000: float
    rows_per_second: float
    tokens_per_second: float
    precision: str
    endpoint: dict[str, Any]


class _Groups(TypedDict, total=False):
    """The figures by group, value and metric."""

    groups: dict[str, dict[str, dict[str, Figure]]]


def read_metrics(storage: RunStorage) -> Metrics:
    """The content of metrics.json. Raises an InputError if it is damaged, or of another shape."""
    metrics: Metrics = storage.read_json(METRICS_FILE, Metrics)
    names = {metrics["main_metric"], *metrics.get("metrics", {})}
    try:
        if not metrics["systems"]:
            raise ValueError("it has no systems")
        for scores in metrics["systems"].values():
            check_kind(SystemFacts, scores)
            check_kind(_Groups, scores)
            check_kind(dict[str, Figure], {n: scores[n] for n in names if n in scores})
    except ValueError as error:
        raise storage.damaged(METRICS_FILE, error) from None
    return metrics
