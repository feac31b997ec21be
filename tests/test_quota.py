import asyncio

import pytest

from common.quota import Quota


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def count_sent(quota, clock, seconds, tokens=1):
    """How many calls a worker sends that waits exactly as long as it is told."""
    end, sent = clock.now + seconds, 0
    while clock.now < end:
        wait = quota.try_acquire(tokens)
        clock.now += wait
        sent += wait == 0
        assert sent < 100_000, "there is no limit"
    return sent


@pytest.mark.parametrize(
    ("limits", "tokens", "per_minute"),
    [
        ((600, None), 1, 600),
        ((None, 60_000), 100, 600),
        ((600, 30_000), 100, 300),
        ((300, 60_000), 100, 300),
        ((30, None), 1, 30),
    ],
)
def test_the_tighter_limit_holds_over_minutes(clock, limits, tokens, per_minute):
    sent = count_sent(Quota(*limits, clock=clock), clock, 120, tokens)
    assert sent == pytest.approx(2 * per_minute, rel=0.05)


def test_a_share_of_the_limits(clock):
    sent = count_sent(Quota(600, 600_000, share=0.25, clock=clock), clock, 60)
    assert sent == pytest.approx(150, rel=0.05)


def test_without_limits_nothing_waits(clock):
    quota = Quota(None, None, clock=clock)
    assert [quota.try_acquire(1e9) for _ in range(100)] == [0] * 100


def test_a_quiet_hour_is_not_saved_up(clock):
    quota = Quota(60, None, clock=clock)
    clock.now += 3600
    assert count_sent(quota, clock, 10) <= 12


def test_a_call_that_is_refused_takes_nothing(clock):
    quota = Quota(60, 60, clock=clock)
    while (wait := quota.try_acquire(1)) == 0:
        pass
    assert [quota.try_acquire(1) for _ in range(5)] == [wait] * 5
    clock.now += wait
    assert quota.try_acquire(1) == 0


def test_a_call_larger_than_the_quota_is_sent_and_paid_back(clock):
    quota = Quota(None, 600, clock=clock)
    assert quota.try_acquire(1200) == 0
    assert quota.try_acquire(1) == pytest.approx(120, abs=2)


@pytest.mark.parametrize(("used", "wait"), [(100, 10), (300, 30), (10, 1), (0, 0)])
def test_settling_corrects_the_estimate(clock, used, wait):
    quota = Quota(None, 600, clock=clock)
    assert quota.try_acquire(100) == 0
    quota.settle(100, used)
    assert quota.try_acquire(1) == pytest.approx(wait, abs=1.1)


def test_a_pause_holds_back_everything_for_as_long_as_the_longest(clock):
    quota = Quota(None, None, clock=clock)
    quota.pause(30)
    quota.pause(5)
    assert quota.try_acquire(1) == 30
    clock.now += 30
    assert quota.try_acquire(1) == 0


def test_acquire_waits_for_as_long_as_it_is_told(clock, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    quota = Quota(None, None, clock=clock)
    quota.pause(20)
    asyncio.run(quota.acquire(1))
    assert slept == [20]
