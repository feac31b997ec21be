"""Metrics for labels that are JSON: values are compared, not their spelling."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from common.metrics.statistics import Array, divide
from common.metrics.text import normalize

Field = tuple[str, Any]
"""A place in a value, without the positions in lists, and the value there."""


def json_match(text: str, prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction is the same value as a reference; else 0.

    Numbers are the same if they are equal (1 and 1.0), texts if their normal forms are; the order
    of an object's keys does not count. What is not JSON is compared as a text.
    """
    return float(any(_load(prediction) == _load(reference) for reference in references))


def count_fields(text: str, prediction: str, references: Sequence[str]) -> list[int]:
    """The fields that prediction and reference share, the prediction's and the reference's.

    Of several references, the one that shares most counts.
    """
    made = Counter(_list_fields(_load(prediction)))
    counts = []
    for reference in references or [""]:
        wanted = Counter(_list_fields(_load(reference)))
        counts.append([(made & wanted).total(), made.total(), wanted.total()])
    return max(counts, key=lambda count: 2 * count[0] / max(count[1] + count[2], 1))


def combine_f1(sums: Array) -> Array:
    """F1 over all fields of all rows, from 0 to 1."""
    return divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _load(text: str) -> Any:
    try:
        return _normalize(json.loads(text))
    except (ValueError, RecursionError):
        return normalize(text)


def _normalize(value: Any) -> Any:
    if isinstance(value, dict):
        return {normalize(key): _normalize(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normalize(item) for item in value]
    if isinstance(value, bool):
        return ("bool", value)  # True is not 1
    return normalize(value) if isinstance(value, str) else value


def _list_fields(value: Any, place: str = "") -> Iterator[Field]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _list_fields(item, f"{place}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _list_fields(item, f"{place}[]")
    else:
        yield place, value
