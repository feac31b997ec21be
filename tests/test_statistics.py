import numpy as np
import pytest
from scipy.stats import binomtest

from common.metrics.statistics import (
    bootstrap_interval,
    mcnemar_exact,
    paired_bootstrap,
    ratio_interval,
    smallest_difference,
    wilson_interval,
)


def take_mean(sums):
    return sums[..., 0] / sums[..., 1]


def make_rows(rng, n, p):
    return np.stack([rng.random(n) < p, np.ones(n)], axis=1).astype(float)


@pytest.mark.parametrize("seed", range(30))
def test_wilson_and_mcnemar_are_scipys(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 3000))
    hits = int(rng.integers(0, n + 1))
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
    expected = binomtest(hits, n, 0.5).pvalue
    assert mcnemar_exact(hits, n - hits) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_no_rows_tell_nothing():
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
    assert mcnemar_exact(0, 0) == 1
    assert smallest_difference(0, 10) is None


@pytest.mark.parametrize("discordant", [0, 1, 5, 6, 7, 20, 101, 500])
def test_the_smallest_difference_is_just_significant(discordant):
    found = smallest_difference(discordant, 1000)
    if discordant < 6:
        assert found is None
        return
    more = round(found * 1000)
    fewer = (discordant - more) // 2
    assert mcnemar_exact(fewer, discordant - fewer) <= 0.05
    if more >= 2:
        assert mcnemar_exact(fewer + 1, discordant - fewer - 1) > 0.05


def test_the_bootstrap_of_a_share_is_near_wilsons_interval():
    rows = make_rows(np.random.default_rng(0), 800, 0.7)
    low, high = bootstrap_interval(rows, take_mean)
    expected = wilson_interval(rows[:, 0].mean(), 800)
    assert (low, high) == pytest.approx(expected, abs=0.006)
    assert bootstrap_interval(rows, take_mean) == (low, high)


def test_a_paired_difference_covers_the_truth_as_often_as_it_says():
    covered = significant = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        first, second = make_rows(rng, 150, 0.5), make_rows(rng, 150, 0.5)
        (low, high), p_value = paired_bootstrap(first, second, take_mean)
        covered += low <= 0 <= high
        significant += p_value <= 0.05
    assert 180 <= covered <= 199
    assert 1 <= significant <= 20


def test_pairing_makes_a_small_difference_plain():
    rng = np.random.default_rng(0)
    first = make_rows(rng, 500, 0.5)
    second = first.copy()
    second[:12, 0] = 1 - first[:12, 0] * 0
    second[12:, 0] = first[12:, 0]
    (low, _), p_value = paired_bootstrap(second, first, take_mean)
    assert low > 0
    assert p_value < 0.05
    assert paired_bootstrap(first, first, take_mean) == ((0.0, 0.0), 1.0)


def test_a_ratio_to_nothing_has_no_interval():
    rng = np.random.default_rng(0)
    first, second = make_rows(rng, 300, 0.4), make_rows(rng, 300, 0.8)
    low, high = ratio_interval(first, second, take_mean)
    assert low < first[:, 0].mean() / second[:, 0].mean() < high
    assert ratio_interval(first, second * [0, 1], take_mean) is None


def test_many_rows_take_little_memory_and_give_what_the_bootstrap_gives(monkeypatch):
    rng = np.random.default_rng(1)
    first = np.stack([rng.random(15_000) < 0.3, np.ones(15_000)], axis=1).astype(float)
    second = np.stack([rng.random(15_000) < 0.29, np.ones(15_000)], axis=1).astype(float)
    exact = bootstrap_interval(first, take_mean), paired_bootstrap(first, second, take_mean)
    monkeypatch.setattr("common.metrics.statistics._MANY", 10_000)
    interval, (difference, p_value) = (
        bootstrap_interval(first, take_mean),
        paired_bootstrap(first, second, take_mean),
    )
    assert interval == pytest.approx(exact[0], abs=2e-3)
    assert difference == pytest.approx(exact[1][0], abs=3e-3)
    assert p_value == pytest.approx(exact[1][1], abs=0.03)


def test_a_million_discordant_rows_take_a_moment():
    assert mcnemar_exact(500_000, 500_000) == pytest.approx(1, abs=1e-3)
    assert 0.04 < mcnemar_exact(500_000 - 980, 500_000 + 980) < 0.06
    assert smallest_difference(1_000_000, 10_000_000) == pytest.approx(1960 / 1e7, rel=0.01)
