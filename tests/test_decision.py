"""Confidence, cascade and savings, on simulated students."""

import numpy as np
import pytest

from common.data.testset import TestRow
from common.evaluation.cascade import measure_cascade
from common.evaluation.confidence import (
    SIGNALS,
    calibrate,
    check_calibration,
    read_signals,
    split_halves,
)
from common.evaluation.decision import count_savings, decide, read_calibration
from common.evaluation.predictions import make_prediction_table
from common.metrics.metrics import METRICS
from common.records import Response, hash_text

ACCURACY = METRICS["accuracy"]


def simulate(rows, seed=0, student_at_least=0.3, teacher=0.86):
    """Signals, and whether student and teacher are right: the surer the student, the likelier."""
    random = np.random.default_rng(seed)
    sure = random.uniform(student_at_least, 1.0, rows)
    tokens = random.integers(1, 6, rows)
    mean = np.log(sure) / (tokens + 1)
    margin = 2 * np.exp(1.5 * mean) - 1
    signals = np.stack([mean, 1.5 * mean, margin, tokens, np.zeros(rows)], 1)
    is_right = random.uniform(size=rows) < sure
    return signals, is_right, random.uniform(size=rows) < teacher


def make_statistics(is_right):
    return np.stack([is_right, np.ones(len(is_right))], 1).astype(float)


def test_the_confidence_is_the_share_that_is_right():
    signals, is_right, _ = simulate(4000)
    calibration = calibrate(signals[:2000], is_right[:2000])
    facts = check_calibration(calibration, signals[2000:], is_right[2000:])
    assert facts["error"] < 0.04
    assert facts["auroc"] > 0.65
    assert sum(rows for _, _, rows in facts["bins"]) == facts["rows"] == 2000
    assert [sure for sure, _, _ in facts["bins"]] == sorted(sure for sure, _, _ in facts["bins"])
    assert read_calibration(facts) == calibration
    overconfident = signals * [
        0.1,
        0.1,
        1,
        1,
        1,
    ]  # half the rows with another meaning of the signals
    assert check_calibration(calibration, overconfident, is_right[:4000])["error"] > 0.1


def test_no_answer_has_no_confidence():
    signals, is_right, _ = simulate(200)
    calibration = calibrate(signals, is_right)
    signals[3] = np.nan
    confidence = calibration.estimate(signals)
    assert confidence[3] == 0
    assert (confidence[np.arange(200) != 3] > 0).all()


@pytest.mark.parametrize("is_right", [[True] * 100, [False] * 98 + [True] * 2, [True, False] * 15])
def test_too_few_rows_calibrate_nothing(is_right):
    signals, _, _ = simulate(len(is_right))
    assert calibrate(signals, np.array(is_right)) is None


def test_halves_are_told_by_the_ids_alone():
    ids = [hash_text(str(i)) for i in range(1000)]
    halves = split_halves(ids)
    assert 440 < halves.sum() < 560
    assert (split_halves(ids[::-1]) == halves[::-1]).all()


def test_the_chosen_threshold_holds_on_rows_that_nobody_has_seen():
    margin, held, shares = 0.02, 0, []
    for seed in range(100):
        signals, is_right, teacher = simulate(1600, seed)
        first = np.arange(1600) < 800
        calibration = calibrate(signals[first], is_right[first])
        chosen = measure_cascade(
            ACCURACY,
            calibration.estimate(signals),
            make_statistics(is_right),
            make_statistics(teacher),
            first,
            margin,
        )["chosen"]
        if chosen is None:
            continue
        unseen, right, by_teacher = simulate(20_000, 1000 + seed)
        local = calibration.estimate(unseen) >= chosen["threshold"]
        shares.append(local.mean())
        held += np.where(local, right, by_teacher).mean() >= by_teacher.mean() - margin
    assert len(shares) > 90
    assert held >= 0.95 * len(shares)
    assert np.mean(shares) > 0.2


def test_a_student_that_is_as_good_takes_all_and_a_bad_one_nothing():
    signals, is_right, teacher = simulate(2000, student_at_least=0.95, teacher=0.5)
    first = np.arange(2000) < 1000
    confidence = np.exp(signals[:, 0])
    good = measure_cascade(
        ACCURACY, confidence, make_statistics(is_right), make_statistics(teacher), first, 0.02
    )
    assert good["chosen"]["share"] == 1
    assert good["chosen"]["threshold"] == 0
    assert good["holds"]
    assert good["points"][0]["share"] == good["points"][0]["difference"] == 0
    bad = measure_cascade(
        ACCURACY,
        np.random.default_rng(0).uniform(size=2000),
        make_statistics(np.zeros(2000, bool)),
        make_statistics(np.ones(2000, bool)),
        first,
        0.02,
    )
    assert (bad["chosen"], bad["holds"]) == (None, None)
    assert bad["points"][-1]["value"] == 0


def test_a_metric_that_is_no_share_has_a_cascade_too():
    metric = METRICS["edit_f05"]
    rows, texts = 400, ["he go home"] * 400
    right, wrong = "he goes home", "she go home"
    random = np.random.default_rng(0)
    sure = random.uniform(size=rows)
    answers = [right if random.uniform() < s else wrong for s in sure]
    student = metric.measure(texts, answers, [[right]] * rows)
    teacher = metric.measure(texts, [right] * rows, [[right]] * rows)
    facts = measure_cascade(metric, sure, student, teacher, np.arange(rows) % 2 == 0, 0.1)
    assert 0 < facts["chosen"]["share"] < 0.6
    assert facts["points"][-1]["value"] < facts["points"][0]["value"] == 1


def test_predictions_of_an_older_version_decide_nothing():
    rows = [TestRow(hash_text(str(i)), str(i), ["a"]) for i in range(50)]
    table = make_prediction_table(rows, [Response("a", 1, 0.1)] * 50)
    assert read_signals(table) is None  # the copied input
    assert read_signals(table.drop_columns(SIGNALS)) is None
    statistics = make_statistics(np.ones(50, bool))
    assert decide(rows, "accuracy", None, *[np.ones(50, bool)] * 2, (statistics,) * 2, 0.02) == {}


def test_savings():
    found = count_savings(0.6, teacher=2.0, rows_per_second=10, usd_per_hour=3.6, spent=11.0)
    assert found["student_usd_per_1000"] == pytest.approx(0.1)
    assert found["saved_usd_per_million"] == pytest.approx(1100)
    assert found["break_even_inputs"] == 10_000
    assert count_savings(0.6, None, 10, 3.6, 11.0)["saved_usd_per_million"] is None
    assert count_savings(0.01, 2.0, 10, 3.6, 11.0)["break_even_inputs"] is None
