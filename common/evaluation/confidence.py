"""A student's confidence: the probability that an answer is right, from what its tokens tell.

A logistic regression on half of the test rows turns log-probabilities into a probability; the other
half says how far that is from the truth.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import TypedDict

from common.metrics.statistics import Array
from common.records import Response

SIGNALS = ("mean_logprob", "least_logprob", "margin", "tokens", "agreement")
"""The columns of predictions that tell how sure a student is."""
_FEWEST = 40
"""Rows of a half, and right or wrong ones of it together, that a calibration needs."""
_RIDGE = 1.0
_LOWEST, _HIGHEST = -20.0, -1e-6
"""Log-probabilities beyond these count as these."""
_STEPS, _BINS = 50, 10

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Calibration:
    """A logistic regression: the logit of being right is weights · (features - means) / scales.

    The features are those of `_make_features`, and a constant as the last weight.
    """

    means: list[float]
    scales: list[float]
    weights: list[float]

    def estimate(self, signals: Array) -> Array:
        """The confidence of answers by their `SIGNALS`, (answers, signals): 0 of no answer."""
        scaled = (_make_features(signals) - np.array(self.means)) / np.array(self.scales)
        confidence = _squash(_add_constant(scaled) @ np.array(self.weights))
        return np.where(np.isnan(signals).any(1), 0.0, confidence)


class ConfidenceFacts(TypedDict):
    """A calibration, and how good it is on the rows that it has not seen.

    Attributes:
        calibration: the fields of a `Calibration`.
        error: the expected calibration error over ten bins of equal numbers of rows.
        auroc: the probability that a right answer is surer than a wrong one; None if all are alike.
        bins: for each bin, the mean confidence, the share of right answers and the rows.
        rows: those that it has not seen.
    """

    calibration: dict[str, list[float]]
    error: float
    auroc: float | None
    bins: list[tuple[float, float, int]]
    rows: int


def read_signals(table: pa.Table) -> Array | None:
    """The signals of a predictions table, (rows, signals), NaN where there is no answer.

    None if the table is of an older version.
    """
    if not set(SIGNALS) <= set(table.column_names):
        return None
    signals = np.stack([table[name].to_numpy().astype(np.float64) for name in SIGNALS], 1)
    signals[:, -1] = np.nan_to_num(signals[:, -1])  # nothing was sampled
    return None if np.isnan(signals[:, 0]).all() else signals


def gather_signals(responses: Sequence[Response]) -> Array:
    """The signals of responses, (responses, signals), NaN where there is no answer."""
    rows = [
        [r.mean_logprob, r.least_logprob, r.margin, r.tokens, r.agreement or 0.0] for r in responses
    ]
    return np.array(rows, np.float64).reshape(-1, len(SIGNALS))


def multiply_probabilities(signals: Array) -> Array:
    """The probability that the student gives its whole answer, 0 where there is none."""
    whole = np.exp(signals[:, 0] * (signals[:, 3] + 1))
    return np.nan_to_num(whole, nan=0.0)


def split_halves(ids: Sequence[str]) -> Mask:
    """Which rows are of the first half, by their ids alone."""
    return np.array([int(id[-1], 16) % 2 == 0 for id in ids], bool)


def calibrate(signals: Array, is_right: Mask) -> Calibration | None:
    """Fits a calibration; None if there are too few rows.

    Newton's method with a ridge penalty, as in C. Bishop, Pattern Recognition and Machine Learning
    (2006), 4.3.3.
    """
    if len(is_right) < _FEWEST or min(is_right.sum(), (~is_right).sum()) < _FEWEST // 8:
        return None
    features = _make_features(signals)
    means, scales = features.mean(0), features.std(0)
    scales[scales < 1e-9] = 1.0
    inputs = _add_constant((features - means) / scales)
    penalty = np.diag([_RIDGE] * features.shape[1] + [1e-6])
    weights = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        estimated = _squash(inputs @ weights)
        gradient = inputs.T @ (estimated - is_right) + penalty @ weights
        curvature = inputs.T @ (inputs * (estimated * (1 - estimated))[:, None]) + penalty
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return Calibration(means.tolist(), scales.tolist(), weights.tolist())


def check_calibration(calibration: Calibration, signals: Array, is_right: Mask) -> ConfidenceFacts:
    """Measures a calibration on rows that it has not seen.

    Source of the error: M. Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian
    Binning (AAAI 2015).
    """
    confidence = calibration.estimate(signals)
    groups = np.array_split(np.argsort(confidence, kind="stable"), _BINS)
    bins = [
        (float(confidence[group].mean()), float(is_right[group].mean()), len(group))
        for group in groups
        if len(group)
    ]
    error = sum(rows * abs(sure - right) for sure, right, rows in bins) / len(is_right)
    return {
        "calibration": asdict(calibration),
        "error": error,
        "auroc": _measure_auroc(confidence, is_right),
        "bins": bins,
        "rows": len(is_right),
    }


def _measure_auroc(confidence: Array, is_right: Mask) -> float | None:
    """By ranks, of which equal values share the mean (Mann and Whitney, 1947)."""
    right, wrong = int(is_right.sum()), int((~is_right).sum())
    if not right or not wrong:
        return None
    _, places, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[is_right].sum() - right * (right + 1) / 2) / (right * wrong))


def _make_features(signals: Array) -> Array:
    """(answers, features): logits of the answer's, the mean and the least probability; the rest."""
    mean, least, margin, tokens, agreement = np.nan_to_num(signals, nan=0.0).T
    whole = mean * (tokens + 1)
    logs = np.clip(np.stack([whole, mean, least], 1), _LOWEST, _HIGHEST)
    logits = logs - np.log(-np.expm1(logs))
    return np.concatenate([logits, margin[:, None], agreement[:, None]], 1)


def _add_constant(inputs: Array) -> Array:
    return np.concatenate([inputs, np.ones((len(inputs), 1))], 1)


def _squash(logits: Array) -> Array:
    squashed: Array = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return squashed
