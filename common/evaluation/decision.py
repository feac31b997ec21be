"""May the student replace the teacher: its confidence, the cascade, and what that saves."""

import math
from collections.abc import Sequence

import numpy as np
from typing_extensions import TypedDict

from common.data.testset import TestRow
from common.errors import InputError
from common.evaluation.cascade import CascadeFacts, measure_cascade
from common.evaluation.confidence import (
    SIGNALS,
    Calibration,
    ConfidenceFacts,
    Mask,
    calibrate,
    check_calibration,
    split_halves,
)
from common.metrics.metrics import METRICS
from common.metrics.statistics import Array


class Savings(TypedDict):
    """What the chosen cascade saves, in US dollars; None if the teacher's price is unknown.

    Attributes:
        teacher_usd_per_1000: the teacher's answers to 1,000 inputs.
        student_usd_per_1000: the student's, by its speed and `evaluate.usd_per_hour`.
        spent_usd: labelling and training.
        saved_usd_per_million: of the inputs, by the cascade; the student answers all of them first.
        break_even_inputs: after which `spent_usd` is saved; None if nothing is.
    """

    teacher_usd_per_1000: float | None
    student_usd_per_1000: float
    spent_usd: float
    saved_usd_per_million: float | None
    break_even_inputs: int | None


class Decision(TypedDict, total=False):
    """Parts of metrics.json; without a calibration there is none of them."""

    confidence: ConfidenceFacts
    cascade: CascadeFacts
    savings: Savings


def decide(
    rows: Sequence[TestRow],
    main: str,
    signals: Array | None,
    is_valid: Mask,
    is_right: Mask,
    statistics: tuple[Array, Array],
    margin: float,
) -> Decision:
    """Calibrates the student's confidence and measures the cascade.

    Args:
        rows: the test rows.
        main: the name of the main metric.
        signals: of the student's answers, see `common.evaluation.confidence`; None: not known.
        is_valid: which of them break no label rule; the others are never sure.
        is_right: which are right.
        statistics: of the main metric, the student's and the teacher's, each (rows, statistics).
        margin: how much lower than the teacher's the score may be.
    """
    first = split_halves([row.id for row in rows])
    if signals is None:
        return {}
    fitting = first & ~np.isnan(signals).any(1)
    calibration = calibrate(signals[fitting], is_right[fitting])
    if calibration is None or not (~first).any():
        return {}
    student, teacher = statistics
    confidence = np.where(is_valid, calibration.estimate(signals), 0.0)
    return {
        "confidence": check_calibration(calibration, signals[~first], is_right[~first]),
        "cascade": measure_cascade(METRICS[main], confidence, student, teacher, first, margin),
    }


def read_calibration(facts: ConfidenceFacts) -> Calibration:
    """The calibration that metrics.json holds. Raises an InputError if it is another version's."""
    found = facts["calibration"]
    fields = ("means", "scales", "weights")
    n = len(SIGNALS)
    if [len(found.get(name, [])) for name in fields] != [n, n, n + 1]:
        raise InputError(
            "the calibration in metrics.json is of another version; delete that file and the "
            "folder predictions, and run python -m jobs.evaluate again"
        )
    return Calibration(**{name: found[name] for name in fields})


def count_savings(
    share: float, teacher: float | None, rows_per_second: float, usd_per_hour: float, spent: float
) -> Savings:
    """What is saved where the student answers a share of the inputs; see `Savings`."""
    student = 1000 * usd_per_hour / 3600 / rows_per_second
    found: Savings = {
        "teacher_usd_per_1000": teacher,
        "student_usd_per_1000": student,
        "spent_usd": spent,
        "saved_usd_per_million": None,
        "break_even_inputs": None,
    }
    if teacher is not None:
        saved = share * teacher - student
        found["saved_usd_per_million"] = 1000 * saved
        if saved > 0:
            found["break_even_inputs"] = math.ceil(round(1000 * spent / saved, 6))
    return found
