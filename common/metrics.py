"""Metrics: pure functions of a prediction and its references, and the statistics of their means.

A metric is one function and one line in `METRICS`; a task file names the ones it wants.
"""

import math
import unicodedata
from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str]], float]


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction is one of the references, character by character; else 0."""
    return float(prediction in references)


def exact_match_normalized(prediction: str, references: Sequence[str]) -> float:
    """Exact match after NFKC, with typographic quotes and runs of white space made plain."""
    return float(normalize(prediction) in {normalize(reference) for reference in references})


def normalize(text: str) -> str:
    """The text in Unicode's form NFKC, straight quotes and single spaces; case is kept."""
    plain = unicodedata.normalize("NFKC", text).translate(str.maketrans("’‘“”„«»", '\'\'"""""'))
    return " ".join(plain.split())


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "exact_match_normalized": exact_match_normalized,
}


def wilson_interval(mean: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share, 95 % by default.

    Source: E. B. Wilson, Probable inference, JASA 22 (1927), 209-212.
    """
    if n == 0:
        return 0.0, 1.0
    center = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def summarize(scores: Sequence[float]) -> dict[str, float | int | list[float]]:
    """Mean, number and 95 % interval of scores that are 0 or 1."""
    mean = sum(scores) / len(scores) if scores else 0.0
    low, high = wilson_interval(mean, len(scores))
    return {"value": mean, "n": len(scores), "interval": [low, high]}
