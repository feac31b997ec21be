import math
import pickle
import random
from dataclasses import replace

import pytest

from common.errors import CostCapError, DistillError, TeacherRefusedError
from common.quota.protocol import Headers, Lease, Tally, Totals
from common.quota.quota import Quota
from common.teacher.rate_limits import parse_retry_after, read_headers
from support.simulation import Bucket, Log, Server, Window, run, work

WORDS = ("limit", "remaining", "reset")
RATE = 1200
"""Of the simulated servers, in requests a minute."""


class Clock:
    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


clock = Clock()  # pickled by its name


@pytest.fixture(autouse=True)
def reset_clock():
    clock.now = 1000.0


def read_clock():
    return clock()


def make_quota(*limits, **values) -> Quota:
    return Quota(*limits, **values, clock=read_clock)


def renew(quota, name="a", calls=0, usd=0.0, tokens=100.0, **values) -> Lease:
    """A worker's tally, with so many calls that want to start."""
    return quota.renew(name, Tally(waiting=[(tokens, usd)] * calls, demand=calls, **values))


def answer(quota, calls=1, **values) -> Lease:
    """The tally that so many calls were answered."""
    return renew(quota, totals=Totals(calls=calls, answered=calls), **values)


def count_granted(quota, seconds, tokens=100.0):
    """How many calls may start, for a worker that always wants to start more."""
    end, granted = clock.now + seconds, 0
    while clock.now < end:
        lease = renew(quota, calls=40, tokens=tokens)
        granted += len(lease.delays)
        clock.now += lease.renew_seconds
    return granted


# How long whole jobs take, and how many 429s they get, in virtual time.


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_quota_that_is_told_is_used_up_and_not_exceeded(workers, headers):
    server = Server(Bucket(RATE, burst=20), headers=headers, seed=workers)
    result = run(work(server, RATE, calls=1200, workers=workers))
    assert result.ratio <= 1.02
    assert result.throttled <= 0.002


@pytest.mark.parametrize(("told", "workers"), [(5 * RATE, 1), (5 * RATE, 4), (None, 2)])
def test_headers_teach_the_quota(told, workers):
    server = Server(Bucket(RATE, burst=20), seed=workers)
    result = run(work(server, told, calls=1200, workers=workers))
    assert result.ratio <= 1.05
    assert result.throttled <= 0.002


@pytest.mark.parametrize(
    ("workers", "seed", "values"),
    [
        (1, 0, {}),
        (2, 0, {}),
        (4, 0, {}),
        (4, 1, {}),
        (4, 2, {"retry_after": math.ceil}),
        (2, 3, {"latency": 1.0}),
        (4, 4, {"latency": 1.0, "retry_after": math.ceil}),
    ],
)
def test_429s_teach_the_quota(workers, seed, values):
    server = Server(Bucket(RATE, burst=20), headers=False, seed=seed, **values)
    result = run(work(server, 5 * RATE, workers=workers))
    assert result.ratio <= 1.05
    assert result.throttled <= 0.01


@pytest.mark.parametrize(
    ("told", "headers", "calls", "throttled"),
    [
        (120_000, True, 1200, 0.002),
        (120_000, False, 1200, 0.0),
        (600_000, True, 1200, 0.002),
        (600_000, False, 2400, 0.01),
    ],
)
def test_a_token_quota_is_used_up(told, headers, calls, throttled):
    server = Server(tokens=Bucket(120_000, burst=6_000), headers=headers)
    result = run(work(server, None, told, calls=calls))
    assert result.ratio <= 1.02
    assert result.throttled <= throttled


def test_estimates_need_not_be_known_when_the_answers_are_slow():
    server = Server(tokens=Bucket(120_000, burst=6_000), latency=1.0)
    result = run(work(server, None, 600_000, calls=1200))
    assert result.ratio <= 1.05
    assert result.throttled <= 0.005


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("per_character", [0.3, 3.0])
def test_a_wrong_guess_of_the_tokens_is_mended_by_the_first_answer(headers, per_character):
    """Also for the calls that wait already, and for workers that have no answer of their own."""
    server = Server(tokens=Bucket(120_000, burst=2_000), headers=headers)
    result = run(work(server, None, 120_000, calls=1200, workers=4, per_character=per_character))
    assert result.ratio < 1.03
    assert result.throttled <= 0.002


@pytest.mark.parametrize("allowed", [Bucket(RATE, burst=RATE), Window(RATE)])
def test_a_burst_that_headers_announce_is_used(allowed):
    result = run(work(Server(allowed), RATE, calls=2400))
    assert result.ratio <= 1.05
    assert result.throttled <= 0.002


def test_a_server_with_few_slots_is_kept_busy():
    server = Server(slots=16, headers=False, retry_after=lambda seconds: None)
    result = run(work(server, calls=4800))
    assert result.ratio <= 1.15
    assert result.throttled <= 0.01


@pytest.mark.parametrize("headers", [True, False])
def test_a_quota_that_others_have_used_up_is_waited_for(headers):
    class UsedUp(Bucket):
        _level = -400.0

        def level(self):
            self._at = self._at or clock_begun
            return super().level()

    clock_begun = 1200.0
    bucket = UsedUp(RATE, burst=20)
    bucket._level = -400.0
    result = run(work(Server(bucket, headers=headers), 5 * RATE, calls=1200))
    assert result.ratio * 59 <= 81
    assert result.throttled <= 0.03


def test_headers_that_lie_are_not_believed():
    class Liar(Server):
        def tell(self):
            return Headers(6000, 5000, 1.0)

    result = run(work(Liar(Bucket(RATE, burst=20)), calls=1200))
    assert result.ratio <= 1.02
    assert result.throttled <= 0.03


# What the settings tell.


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
def test_the_tighter_limit_holds_over_minutes(limits, tokens, per_minute):
    assert count_granted(make_quota(*limits), 120, tokens) == pytest.approx(
        2 * per_minute, rel=0.02
    )


def test_a_quiet_hour_is_not_saved_up():
    quota = make_quota(60)
    count_granted(quota, 60)
    clock.now += 3600
    assert count_granted(quota, 10) <= 12


def test_without_limits_the_slots_are_all_that_counts():
    lease = renew(make_quota(max_concurrency=7), calls=100)
    assert (lease.slots, lease.delays) == (7, None)


def test_a_call_larger_than_the_quota_is_sent_and_paid_back():
    quota = make_quota(None, 600)
    assert renew(quota, calls=1, tokens=1200).delays == [0.0]
    clock.now += 100
    assert renew(quota, calls=1).delays == []
    clock.now += 20
    assert len(renew(quota, calls=1, tokens=1.0).delays) == 1


@pytest.mark.parametrize(("used", "seconds"), [(100, 10), (300, 30), (10, 1)])
def test_the_tokens_that_were_used_count(used, seconds):
    quota = make_quota(None, 600)
    renew(quota, calls=1)
    answer(quota, token_correction=used - 100.0)
    begun = clock.now
    while not renew(quota, calls=1, tokens=1.0).delays:
        clock.now += 0.1
    assert clock.now - begun == pytest.approx(seconds, abs=0.5)


# What the server tells.


def teach(quota, remaining, age=0.0, limit=1200.0, started=(0.0, 0.0), **values) -> Lease:
    headers = Headers(requests_limit=limit, requests_remaining=remaining, **values)
    return answer(quota, headers=(headers, started, age))


def test_of_two_headers_the_later_call_s_counts():
    quota = make_quota()
    teach(quota, remaining=2.0)
    teach(quota, remaining=900.0, age=0.5)
    assert len(renew(quota, calls=40).delays) <= 4


def test_of_headers_of_calls_sent_at_once_the_lowest_counts():
    quota = make_quota()
    teach(quota, remaining=900.0)
    teach(quota, remaining=2.0, age=0.01)
    teach(quota, remaining=800.0, age=0.005)
    assert len(renew(quota, calls=40).delays) <= 4


def test_calls_that_started_since_count_beside_the_headers():
    quota = make_quota()
    renew(quota, started=(30.0, 3000.0))
    teach(quota, remaining=35.0, age=0.1, started=(1.0, 100.0))
    assert 5 <= len(renew(quota, calls=40).delays) <= 10


def test_calls_that_are_granted_count_beside_the_headers():
    quota = make_quota()
    renew(quota, name="b", granted=(29.0, 2900.0))
    teach(quota, remaining=35.0, age=0.1)
    assert 5 <= len(renew(quota, calls=40).delays) <= 10


def test_a_limit_by_the_day_is_not_used_as_one_by_the_minute():
    quota = make_quota()
    teach(quota, remaining=0.0, limit=200.0, requests_reset_seconds=86_400.0)
    assert count_granted(quota, 900) <= 200 / 96 + 1


def test_a_wait_that_headers_ask_for_is_told():
    quota = make_quota()
    teach(quota, remaining=0.0, limit=7200.0, requests_reset_seconds=86_400.0)
    assert 70 <= count_granted(quota, 900) <= 76
    clock.now += 0.1
    renew(quota, calls=1)
    assert quota.snapshot().quota_wait == (
        "a call every 12 s, as headers say that 0 of 7,200 requests are left, and all in 86,400 s"
    )
    teach(quota, remaining=7000.0, limit=7200.0, requests_reset_seconds=2_400.0)
    assert quota.snapshot().quota_wait == ""


def test_headers_that_ask_to_wait_for_hours_end_the_job():
    quota = make_quota()
    for _ in range(2):
        teach(quota, remaining=0.0, limit=5.0, requests_reset_seconds=86_400.0)
        assert quota.snapshot().failure is None  # nothing waits
    failure = renew(quota, calls=1).failure
    assert str(failure).startswith("the teacher's quota is used up for 17,280 s: its headers say")
    assert "0 of 5 requests are left, and all in 86,400 s; run again then" in str(failure)


@pytest.mark.parametrize("seed", range(300))
def test_whatever_headers_say_the_quota_stays_sound(seed):
    odd = ["0", "1", "7200", "9" * 400, "9" * 400 + "s", "1e308", "1e-320", "-1", "nan", "inf"]
    odd += ["24h", "9d", "0s", "1ms", "0.9999999", "", "soon", "Fri, 01 Jan 2100 00:00:00 GMT"]
    rng = random.Random(seed)
    names = (f"x-ratelimit-{w}-{k}" for k in ("requests", "tokens") for w in WORDS)
    headers = read_headers([(name.encode(), rng.choice(odd).encode()) for name in names])
    quota = make_quota(rng.choice([None, 60]))
    for _ in range(5):
        wait = parse_retry_after(rng.choice(odd))
        throttles = [(0.1, wait)] * rng.randint(0, 1)
        told = {"headers": (headers, (1.0, 100.0), 0.1), "throttles": throttles}
        lease = renew(quota, calls=3, started=(1.0, 100.0), **told)
        times = [*(lease.delays or []), lease.renew_seconds, lease.pause_seconds]
        assert all(math.isfinite(seconds) and seconds >= 0 for seconds in times)
        assert len(quota.snapshot().quota_wait) < 400
        clock.now += rng.choice([0.05, 1.0, 3600.0])


def test_a_lower_limit_of_the_settings_holds():
    quota = make_quota(300)
    for _ in range(60):
        teach(quota, remaining=1000.0)
        count_granted(quota, 1)
    assert count_granted(quota, 60) == pytest.approx(300, rel=0.05)


def refuse(quota, *ages, retry_after=None, name="a", **values) -> Lease:
    """The tally of 429s to calls that were sent so many seconds ago."""
    throttles = [(age, retry_after) for age in ages]
    totals = Totals(calls=len(ages), throttled=len(ages))
    return renew(quota, name, throttles=throttles, totals=totals, **values)


def test_retry_after_pauses_everyone_for_as_long_as_the_longest():
    quota = make_quota()
    renew(quota, "b", calls=9)
    refuse(quota, 0.1, retry_after=30.0)
    refuse(quota, 0.1, retry_after=5.0)
    for seconds in (10, 19):
        clock.now += seconds
        lease = renew(quota, "b", calls=9)
        assert lease.delays == []
        assert lease.pause_seconds > 0.5
    clock.now += 2
    assert renew(quota, "b", calls=9).delays is None  # any may start


def test_nothing_starts_while_the_owner_holds_the_calls_back():
    quota = make_quota()
    assert renew(quota, calls=3).delays is None
    quota.snapshot(may_start=False)
    assert renew(quota, calls=3).slots == 0
    assert renew(quota, calls=3).delays == []
    quota.snapshot()
    assert renew(quota, calls=3).delays is None


def test_the_calls_of_a_dead_worker_are_told_as_lost():
    quota = make_quota(max_concurrency=8)
    renew(quota, "b", calls=9)
    renew(quota, calls=9)
    assert quota.snapshot().lost_calls == 0
    clock.now += 19
    renew(quota, calls=9)
    clock.now += 2
    assert quota.snapshot().lost_calls == 8
    assert quota.snapshot().lost_calls == 8


def test_429s_without_an_answer_between_pause_longer_and_longer():
    quota, pauses = make_quota(), []
    answer(quota)
    for _ in range(10):
        clock.now += 60
        pauses.append(refuse(quota, 0.1, calls=1).pause_seconds)
    assert pauses == [0, 0.5, 1, 2, 3, 3, 3, 3, 3, 3]
    clock.now += 60
    answer(quota)
    assert refuse(quota, 0.1, calls=1).pause_seconds == 0


def test_one_episode_of_429s_narrows_the_window_once():
    quota = make_quota(max_concurrency=100)
    answer(quota, calls=90, in_flight=90)
    clock.now += 1
    refuse(quota, *[0.1] * 5, in_flight=95)
    assert quota.snapshot().slots == 85
    clock.now += 0.05
    refuse(quota, *[0.1] * 5, in_flight=90)
    assert quota.snapshot().slots == 85


def test_the_window_falls_to_what_the_server_had_accepted():
    quota = make_quota(max_concurrency=100)
    renew(quota, calls=100)
    clock.now += 1
    refuse(quota, 0.1, in_flight=99)
    clock.now += 0.05
    refuse(quota, *[0.1] * 79, in_flight=20)
    assert quota.snapshot().slots == 20
    clock.now += 1
    refuse(quota, *[1.1] * 5, in_flight=0)
    assert quota.snapshot().slots == 15


def test_answers_widen_the_window_slowly_up_to_the_maximum():
    quota = make_quota(max_concurrency=20)
    clock.now += 1
    refuse(quota, 0.1, in_flight=10)
    assert quota.snapshot().slots == 10
    sizes = []
    for _ in range(200):
        answer(quota, calls=10)
        sizes.append(quota.snapshot().slots)
    assert sizes == sorted(sizes)
    assert 11 <= sizes[15] <= 12
    assert sizes[-1] == 20


def test_the_first_call_goes_alone():
    quota = make_quota(RATE, sends_scout=True)
    assert renew(quota, "a", calls=9).delays == [0.0]
    clock.now += 1
    assert renew(quota, "b", calls=9).delays == []
    assert renew(quota, "a", calls=8, in_flight=1).delays == []
    answer(quota)
    assert renew(quota, "b", calls=9).delays


def test_a_first_call_that_does_not_end_lets_a_few_others_start():
    quota = make_quota(RATE, sends_scout=True)
    renew(quota, "a", calls=9)
    clock.now += 10
    assert renew(quota, "a", calls=9, in_flight=1).slots == 4
    answer(quota)
    assert renew(quota, "a", calls=9, in_flight=4).slots > 4


# What the workers share.


def test_slots_are_shared_and_never_granted_twice():
    quota = make_quota(max_concurrency=16)
    assert renew(quota, "a", calls=99).slots == 16
    assert renew(quota, "b", calls=99).slots == 0
    assert renew(quota, "a", calls=99, in_flight=9).slots == 8
    assert renew(quota, "b", calls=99).slots == 0, "a may not have heard of it yet"
    assert renew(quota, "a", calls=99, in_flight=9).slots == 8
    assert renew(quota, "b", calls=99).slots == 7, "a has 9 in flight"
    assert renew(quota, "a", calls=99, in_flight=8).slots == 8
    assert renew(quota, "b", calls=99, in_flight=7).slots == 8


def test_slots_that_one_does_not_need_go_to_the_other():
    quota = make_quota(max_concurrency=16)
    renew(quota, "a", calls=99)
    assert renew(quota, "a", in_flight=3).slots == 3
    assert renew(quota, "b", calls=99).slots == 13


def test_a_dead_worker_s_slots_come_back():
    quota = make_quota(max_concurrency=16)
    renew(quota, "a", calls=99)
    renew(quota, "a", calls=83, in_flight=16)
    clock.now += 15
    assert renew(quota, "b", calls=99).slots == 0
    clock.now += 10
    assert renew(quota, "b", calls=99).slots == 16
    assert quota.snapshot().in_flight == 0


def test_a_snapshot_adds_up_what_all_workers_told():
    quota = make_quota(600, 90_000)
    clock.now += 5
    renew(quota, "a", in_flight=2, totals=Totals(calls=4, retries=1, answered=2, cost_usd=0.5))
    clock.now += 2
    renew(
        quota,
        "b",
        in_flight=3,
        totals=Totals(calls=1, answered=1),
        storage_error="the disk is full",
    )
    clock.now += 9
    snapshot = quota.snapshot()
    assert snapshot.totals == Totals(calls=5, retries=1, answered=3, cost_usd=0.5)
    assert (snapshot.in_flight, snapshot.storage_error) == (5, "the disk is full")
    assert snapshot.requests_per_minute == pytest.approx(600)
    assert snapshot.tokens_per_minute == pytest.approx(90_000)
    assert snapshot.active_seconds == 2


# Money.


def release(quota, usd, actual, name="a", **values) -> Lease:
    """The tally that a call has ended, for which `usd` were reserved."""
    totals = Totals(calls=1, answered=1, cost_usd=actual)
    return renew(quota, name, released_usd=usd, totals=totals, **values)


def test_dollars_are_reserved_by_the_worst_case():
    quota = make_quota(max_cost_usd=1.0)
    lease = renew(quota, calls=9, usd=0.3)
    assert (len(lease.delays), lease.failure) == (3, None)
    assert renew(quota, "b", calls=9, usd=0.3).delays == []


def test_the_cap_stops_the_job_when_nothing_can_be_released_any_more():
    quota = make_quota(max_cost_usd=1.0)
    renew(quota, calls=9, usd=0.3)
    release(quota, 0.3, 0.1)
    lease = renew(quota, calls=9, usd=0.3)
    assert (len(lease.delays), lease.failure) == (1, None), "0.2 were released"
    for _ in range(3):
        assert release(quota, 0.3, 0.3).failure is None
    renew(quota, calls=1, usd=0.3)
    failure = renew(quota).failure
    assert isinstance(failure, CostCapError)
    assert "DISTILL_LABEL__MAX_COST_USD=1 is reached: $1.0000 are spent" in str(failure)


def test_what_was_spent_before_counts_and_a_higher_cap_goes_on():
    stopped = make_quota(max_cost_usd=1.0, spent_usd=0.8)
    assert renew(stopped, calls=1, usd=0.3).delays == []
    assert isinstance(renew(stopped).failure, CostCapError)
    raised = make_quota(max_cost_usd=2.0, spent_usd=0.8)
    assert len(renew(raised, calls=9, usd=0.3).delays) == 4


def test_grants_that_are_returned_free_their_dollars():
    quota = make_quota(max_cost_usd=1.0)
    renew(quota, calls=3, usd=0.3)
    renew(quota, returned=(2, 200.0, 0.6))
    assert len(renew(quota, calls=9, usd=0.3).delays) == 2


def test_a_dead_worker_s_dollars_count_as_spent():
    quota = make_quota(max_cost_usd=1.0)
    renew(quota, "a", calls=2, usd=0.3)
    clock.now += 30
    assert len(renew(quota, "b", calls=9, usd=0.3).delays) == 1


@pytest.mark.parametrize("price", [1.0, 0.6, 0.0])
def test_the_cap_is_never_exceeded(price):
    """`price` is the actual cost, as a share of the worst case, 0.01."""
    quota, spent, in_flight = make_quota(max_cost_usd=1.0, max_concurrency=16), 0.0, 0
    for _ in range(400):
        lease = renew(quota, calls=8, usd=0.01, in_flight=in_flight)
        if lease.failure:
            break
        in_flight += len(lease.delays)
        if in_flight:
            in_flight -= 1
            spent += 0.01 * price
            release(quota, 0.01, 0.01 * price, in_flight=in_flight)
        assert spent + in_flight * 0.01 <= 1.0 + 1e-9
    if price:
        assert (type(lease.failure), in_flight) == (CostCapError, 0)
        assert spent > 0.98


# Stopping, and moving to another process.


def test_after_a_stop_nothing_starts():
    quota = make_quota()
    renew(quota, "a", calls=9)
    reason = DistillError("the job is stopping")
    quota.stop(reason)
    quota.stop(DistillError("another reason"))
    lease = renew(quota, "b", calls=9)
    assert (lease.slots, lease.delays) == (0, [])
    assert lease.failure is reason


def test_a_worker_s_failure_stops_the_job():
    quota = make_quota()
    refusal = TeacherRefusedError("401")
    renew(quota, "a", failure=refusal)
    assert renew(quota, "b", calls=9).failure is refusal
    assert quota.snapshot().failure is refusal


def test_workers_that_die_are_counted():
    quota = make_quota()
    for name in "abc":
        renew(quota, name, calls=2)
        clock.now += 30
    snapshot = quota.snapshot()
    assert (snapshot.workers, snapshot.lost_workers) == (0, 3)
    quota.dead_seconds = float("inf")
    renew(quota, "d", calls=2)
    clock.now += 1000
    assert (quota.snapshot().workers, quota.snapshot().lost_workers) == (1, 3)


def test_nothing_starts_while_the_owner_is_silent():
    quota = make_quota()
    quota.require_heartbeat(5.0)
    assert renew(quota, calls=9).slots
    clock.now += 6
    lease = renew(quota, calls=9)
    assert (lease.slots, lease.delays, lease.failure) == (0, [], None)
    quota.snapshot()
    assert renew(quota, calls=9).slots


def test_a_quota_knows_on_another_machine_what_it_knew():
    quota = make_quota(6000, max_cost_usd=1.0)
    renew(quota, calls=1, usd=0.5)
    release(quota, 0.5, 0.4)
    teach(quota, remaining=0.0, limit=60.0)
    refuse(quota, 0.1, retry_after=100.0)
    packed = pickle.dumps(quota)
    clock.now += 10_000_000
    moved = pickle.loads(packed)
    snapshot = moved.snapshot()
    assert snapshot.pause_seconds == pytest.approx(101)
    assert (snapshot.requests_per_minute, snapshot.in_flight) == (60, 0)
    assert snapshot.totals == Totals(calls=3, answered=2, throttled=1, cost_usd=0.4)
    clock.now += 102
    assert len(renew(moved, calls=3, usd=0.4).delays) == 1


def test_totals_add_up():
    one, other = Totals(1, 2, 3, 4, 5, 6, 7.0, 8.0), Totals(10, 20, 30, 40, 50, 60, 70.0, 80.0)
    one.add(other)
    assert one == Totals(11, 22, 33, 44, 55, 66, 77.0, 88.0)


@pytest.mark.parametrize("seconds", [10.0, 60.0])
@pytest.mark.parametrize("told", [RATE, None])
@pytest.mark.parametrize("headers", [True, False])
def test_a_sliding_window_is_learned_with_its_length(seconds, told, headers):
    """Whether headers tell the limit, the settings do, or nothing but the time to wait does."""
    server = Server(Log(RATE, seconds), headers=headers)
    result = run(work(server, told, calls=round(RATE * (1 + seconds / 60))))
    paces = told and not headers  # a configured limit is kept evenly, without the burst
    assert result.ratio <= (2.1 if paces and seconds == 60 else 1.25 if paces else 1.2)
    assert result.throttled <= (0.003 if headers or told else 0.02)  # 4 of each 200


def test_a_window_s_limit_in_the_headers_is_no_minute_s():
    server = Server(Log(RATE, 10.0))
    tell = server.tell
    server.tell = lambda: replace(tell(), requests_limit=RATE / 6)
    result = run(work(server, RATE, calls=RATE))
    assert result.ratio <= 1.1
    assert result.throttled <= 0.003


def test_a_sliding_window_of_tokens_is_learned():
    server = Server(tokens=Log(100 * RATE, 10.0), headers=False)
    result = run(work(server, calls=RATE))
    assert result.ratio <= 1.05
    assert result.throttled <= 0.015


@pytest.mark.parametrize("allowed", [Bucket(RATE, burst=20), Window(RATE)])
def test_another_quota_is_taken_for_no_window(allowed):
    server = Server(allowed, retry_after=math.ceil)
    result = run(work(server, RATE, calls=2400))
    assert result.ratio <= 1.05
    assert result.throttled <= 0.01
