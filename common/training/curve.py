"""The learning curve: what more labels would bring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 500
_FLOORS = 20
"""So many shares of the least error are tried as the error that stays with any number of labels."""


@dataclass(frozen=True)
class Gain:
    """Points of agreement, as a share, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def predict_gain(points: Sequence[tuple[int, float]], held_out: int, more: int) -> Gain | None:
    """What `more` labels would add to the agreement; None of fewer than two sizes.

    The error falls as a power of the number of labels, to a floor. The interval is that of the
    held-out labels, Jeffreys' posterior, as if each point had some of its own: the points share
    theirs, so it is rather too wide.

    Args:
        points: numbers of labels, each with the agreement on the held-out ones.
        held_out: how many those are.
        more: labels on top of the largest number.

    Source: J. Hestness et al., Deep Learning Scaling is Predictable, Empirically (2017).
    """
    sizes = np.array([size for size, _ in points], float)
    shares = np.array([share for _, share in points])
    if len(set(sizes)) < 2 or not held_out:
        return None
    hits, misses = held_out * shares + 0.5, held_out * (1 - shares) + 0.5
    drawn = np.random.default_rng(0).beta(hits, misses, (_RESAMPLES, len(shares)))
    gains = [_gain(sizes, 1 - share, more) for share in drawn]
    low, high = np.quantile(gains, [0.025, 0.975])
    return Gain(_gain(sizes, 1 - shares, more), float(low), float(high))


def _gain(sizes: NDArray[np.float64], errors: NDArray[np.float64], more: int) -> float:
    """How much the fitted error falls from the largest size to `more` labels on top."""
    errors = np.maximum(errors, 1e-3)  # the logarithm of no error
    best, gain = np.inf, 0.0
    for floor in np.linspace(0, errors.min(), _FLOORS, endpoint=False):
        above = errors - floor
        slope, start = np.polyfit(np.log(sizes), np.log(above), 1)
        if slope > 0:  # more labels do no harm
            slope, start = 0.0, np.log(above.mean())
        factor = np.exp(start)
        distance = float(((factor * sizes**slope - above) ** 2).sum())
        if distance < best - 1e-12:
            ends = np.array([sizes.max(), sizes.max() + more]) ** slope
            best, gain = distance, float(factor * (ends[0] - ends[1]))
    return gain
