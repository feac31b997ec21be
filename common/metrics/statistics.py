"""Confidence intervals and significance tests; resampling has a fixed seed."""

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

Array = NDArray[np.float64]
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
"""Of an interval."""
Combine = Callable[[Array], Array]
"""From summed row statistics (…, statistics) to values (…)."""

_RESAMPLES = 1_000
_LEVEL = 0.05
_MANY = 20_000
"""Above this number, what is exact takes too long or too much memory, and differs by little."""


def divide(top: Array, bottom: Array, empty: float = 0.0) -> Array:
    """The quotients; `empty` where the divisor is 0."""
    result: Array = np.divide(top, bottom, out=np.full_like(top, empty), where=bottom > 0)
    return result


def wilson_interval(mean: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share, 95 % by default.

    Source: E. B. Wilson, Probable inference, JASA 22 (1927), 209-212.
    """
    if n == 0:
        return 0.0, 1.0
    center = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, min(mean, center - half)), min(1.0, max(mean, center + half))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    Args:
        only_first: rows that only the first system has right.
        only_second: rows that only the second has right.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157, with the binomial distribution of the
    discordant rows instead of its approximation.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n > _MANY:
        ways = [-math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1)]
        logs = np.array(ways) + math.lgamma(n + 1) - n * math.log(2)
        return min(1.0, 2 * float(np.exp(logs).sum()))
    term, total = 1, 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        total += term
    return min(1.0, float(2 * total / 2**n))


def smallest_difference(discordant: int, n: int) -> float | None:
    """The least difference of two shares that McNemar's test calls significant (p ≤ 0.05).

    Args:
        discordant: rows that exactly one of the two systems has right.
        n: all rows.

    Returns:
        None if no difference in these discordant rows is significant.
    """
    counts = range(discordant // 2 + 1)  # of the rows that the worse system has right
    p_values_rise = partial(_find_p_value, discordant)
    fewer = bisect_right(counts, _LEVEL, key=p_values_rise) - 1
    return None if fewer < 0 else (discordant - 2 * fewer) / n


def _find_p_value(discordant: int, fewer: int) -> float:
    return mcnemar_exact(fewer, discordant - fewer)


def bootstrap_interval(rows: Array, combine: Combine) -> tuple[float, float]:
    """The 95 % percentile interval of a value over resampled rows.

    Args:
        rows: (rows, statistics).
        combine: see `Combine`.

    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    return _find_bounds(combine(_resample_sums(rows)))


def paired_bootstrap(
    first: Array, second: Array, combine: Combine
) -> tuple[tuple[float, float], float]:
    """The 95 % interval of the difference first - second, and a two-sided p-value.

    Both systems are resampled at the same rows.

    Source: P. Koehn, Statistical significance tests for machine translation evaluation (EMNLP
    2004); the p-value counts the observed sample as one more (Davison, Hinkley 1997, 4.2.1).
    """
    one, other = np.split(_resample_sums(np.hstack([first, second])), 2, axis=1)
    differences = combine(one) - combine(other)
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    p_value = 2 * (min(below, above) + 1) / (_RESAMPLES + 1)
    return _find_bounds(differences), min(1.0, float(p_value))


def ratio_interval(first: Array, second: Array, combine: Combine) -> tuple[float, float] | None:
    """The 95 % interval of first / second; None if the second is 0 in some resample."""
    one, other = np.split(_resample_sums(np.hstack([first, second])), 2, axis=1)
    below = combine(other)
    return None if (below <= 0).any() else _find_bounds(combine(one) / below)


def _find_bounds(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [_LEVEL / 2, 1 - _LEVEL / 2])
    return float(low), float(high)


def _resample_sums(rows: Array) -> Array:
    """The sums of resampled rows: (resamples, statistics).

    Of many rows, they are drawn from the normal distribution that they approach (central limit
    theorem): counts of a million rows would take 8 GB.
    """
    n = len(rows)
    if n <= _MANY:
        return _resample(n) @ rows
    drawn = np.random.default_rng(0).multivariate_normal(
        rows.sum(0), n * np.atleast_2d(np.cov(rows, rowvar=False)), _RESAMPLES, method="eigh"
    )
    sums: Array = np.clip(drawn, 0 if rows.min() >= 0 else None, None)
    return sums


@lru_cache(maxsize=1)
def _resample(n: int) -> Array:
    """The count of each row in each resample: (resamples, rows)."""
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    return counts.astype(np.float64)
