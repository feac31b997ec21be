import asyncio
import random

import pytest

from common.errors import CostCapError, DistillError, TeacherRefusedError
from common.quota.calls import Outcome
from common.quota.leases import Leases
from common.quota.protocol import Headers, Totals
from support.simulation import join, make_quota, now, run

REFUSED = TeacherRefusedError("401: no such key")


def answered(usd=0.0) -> Outcome:
    return Outcome(Totals(calls=1, answered=1, cost_usd=usd), 100.0)


def throttled(retry_after=None) -> Outcome:
    return Outcome(Totals(calls=1, throttled=1), 0.0, None, True, retry_after)


async def call(leases, seconds=0.1, usd=0.0, actual=0.0) -> float:
    """One call that is answered; gives the moment at which it started."""
    allowed = await leases.acquire(100.0, lambda: usd)
    await asyncio.sleep(seconds)
    leases.settle(allowed, answered(actual))
    return allowed.sent_at


async def start(*calls) -> list[asyncio.Task]:
    """Starts tasks, and waits until what may start at once has started."""
    tasks = [asyncio.ensure_future(one) for one in calls]
    await asyncio.sleep(0.06)
    return tasks


class Crowd:
    """Workers that join, work in bursts, idle, leave and die; counts their calls in flight."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.in_flight = self.most = self.calls = 0

    async def call(self, leases):
        allowed = await leases.acquire(100.0)
        self.calls += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.random.uniform(0.02, 0.3))
        finally:
            self.in_flight -= 1
        leases.settle(allowed, answered())

    async def work(self, quota, distance, dies):
        await asyncio.sleep(self.random.uniform(0, 4))
        leases = join(quota, distance)
        for _ in range(6):
            calls = [self.call(leases) for _ in range(self.random.choice([1, 3, 20, 60]))]
            if dies and self.random.random() < 0.3:
                await self.die(leases, calls)
                return
            await asyncio.gather(*calls)
            await asyncio.sleep(self.random.choice([0.0, 0.001, 0.03, 0.3, 2.0]))
        await leases.close()

    async def die(self, leases, calls):
        tasks = await start(*calls)
        leases._renewer.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limits", [(), (60_000,), (1_200,)])
def test_calls_in_flight_stay_below_the_limit_over_all_workers(limits, seed):
    crowd = Crowd(seed)

    async def main():
        quota = make_quota(*limits, max_concurrency=16)
        distance = (0.0, 0.004, 0.05)[seed]
        await asyncio.gather(*(crowd.work(quota, distance, dies=i % 3 == 2) for i in range(6)))

    run(main())
    assert crowd.most <= 16
    assert crowd.most == 16 or limits == (1_200,)
    assert crowd.calls > 100


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize(("limits", "total"), [((), 1600), ((1_200,), 200)])
def test_workers_share_fairly(limits, total, workers):
    """Also where one has far more to do than another."""

    async def main():
        quota = make_quota(*limits, max_concurrency=16)
        members = [join(quota, 0.002) for _ in range(workers)]
        counts = dict.fromkeys(members, 0)

        async def count(member):
            await call(member)
            counts[member] += 1

        await start(*(count(m) for n, m in enumerate(members, start=1) for _ in range(1000 * n)))
        await asyncio.sleep(10)
        return list(counts.values())

    counts = run(main())
    assert sum(counts) >= 0.95 * total
    assert min(counts) >= 0.6 * total / workers


def test_a_dead_worker_s_slots_come_back():
    async def main():
        quota = make_quota(max_concurrency=4)
        dead, alive = join(quota), join(quota)
        await start(*(dead.acquire(100.0) for _ in range(4)))
        died_at = now()
        dead._renewer.cancel()
        return await call(alive) - died_at

    assert 15 < run(main()) < 25


@pytest.mark.parametrize("limits", [(), (6_000,)])
def test_a_call_that_is_no_longer_wanted_takes_no_slot(limits):
    async def main():
        quota = make_quota(*limits, max_concurrency=2)
        leases = join(quota)
        holders = await start(leases.acquire(100.0), leases.acquire(100.0))
        unwanted = await start(*(leases.acquire(100.0) for _ in range(5)))
        for task in unwanted:
            task.cancel()
        waiting = await start(call(leases), call(leases))
        for holder in holders:
            leases.settle(holder.result(), answered())
        await asyncio.wait_for(asyncio.gather(*waiting), 1)
        await leases.flush()
        return quota.snapshot().in_flight

    assert run(main()) == 0


def test_a_call_that_is_cancelled_as_it_may_start_gives_back_its_slot_and_dollars():
    async def main():
        leases = join(make_quota(max_concurrency=1, max_cost_usd=1.0))
        (holder,) = await start(leases.acquire(100.0, lambda: 0.4))
        unwanted, wanted = await start(
            leases.acquire(100.0, lambda: 0.6), leases.acquire(100.0, lambda: 0.6)
        )
        leases.settle(holder.result(), answered(0.4))
        unwanted.cancel()
        await asyncio.wait_for(wanted, 1)
        assert unwanted.cancelled()

    run(main())


def test_a_call_that_is_cancelled_as_the_job_stops_leaves_the_count_alone():
    async def main():
        quota = make_quota(max_concurrency=1)
        leases = join(quota)
        _, waiting = await start(leases.acquire(100.0), leases.acquire(100.0))
        leases.fail(REFUSED)
        waiting.cancel()
        await leases.flush()
        return quota.snapshot().in_flight

    assert run(main()) == 1


def test_a_refusal_stops_every_worker_and_lets_calls_in_flight_end():
    async def main():
        quota = make_quota(max_concurrency=4)
        one, other = join(quota), join(quota)
        mine = await start(*(call(one, seconds=3.0) for _ in range(6)))
        others = await start(*(call(other) for _ in range(3)))
        one.fail(REFUSED)
        await asyncio.sleep(1.5)
        with pytest.raises(TeacherRefusedError, match="no such key"):
            await other.acquire(100.0)
        results = await asyncio.gather(*mine, *others, return_exceptions=True)
        await one.close()
        await other.close()
        return results, quota.snapshot()

    results, snapshot = run(main())
    errors = [result for result in results if isinstance(result, Exception)]
    assert {(type(error), str(error)) for error in errors} == {
        (TeacherRefusedError, "401: no such key")
    }
    assert (snapshot.totals.answered, len(errors)) == (4, 5)
    assert snapshot.in_flight == 0


def test_a_stop_from_outside_reaches_the_waiting():
    async def main():
        quota = make_quota(max_concurrency=1)
        leases = join(quota)
        flying, waiting = await start(call(leases, seconds=2.0), call(leases))
        quota.stop(DistillError("the job is stopping"))
        with pytest.raises(DistillError, match="the job is stopping"):
            await waiting
        await flying

    run(main())


def test_the_waiting_hear_of_a_quota_that_is_gone():
    async def vanish(name, tally):
        raise ConnectionError("the node has left")

    async def main():
        leases = Leases(vanish)
        with pytest.raises(DistillError, match=r"quota is gone .*the node has left"):
            await leases.acquire(100.0)
        await leases.flush()

    run(main())


def test_nothing_starts_while_the_owner_is_silent():
    async def main():
        quota = make_quota(max_concurrency=2)
        quota.require_heartbeat(5.0)
        leases = join(quota)
        working = await start(*(call(leases, seconds=1.0) for _ in range(40)))
        await asyncio.sleep(15)
        for _ in range(20):
            quota.snapshot()
            await asyncio.sleep(1)
        starts = await asyncio.gather(*working)
        return [round(start - min(starts), 1) for start in sorted(starts)]

    starts = run(main())
    silent = [start for start in starts if 6.5 < start < 14.5]
    assert (len(starts), silent) == (40, [])


def test_a_429_s_pause_holds_for_everyone():
    async def main():
        quota = make_quota(6_000)
        one, other = join(quota), join(quota)
        (refused,) = await start(one.acquire(100.0))
        one.settle(refused.result(), throttled(5.0))
        paused_at = now()
        starts = await asyncio.gather(*(call(w) for w in (one, other) for _ in range(20)))
        return min(starts) - paused_at

    assert 5.0 <= run(main()) <= 5.2


def test_a_pause_takes_back_what_was_granted():
    async def main():
        quota = make_quota(600)
        one, other = join(quota), join(quota)
        working = await start(*(call(w) for w in (one, other) for _ in range(50)))
        await asyncio.sleep(1.0)
        refused = await one.acquire(100.0, goes_first=True)
        one.settle(refused, throttled(5.0))
        paused_at = now()
        starts = await asyncio.gather(*working)
        return [start - paused_at for start in starts]

    starts = run(main())
    assert not [start for start in starts if 0.15 < start < 5.0]
    assert max(starts) < 18


def test_a_call_that_is_sent_again_goes_first():
    async def main():
        leases, order = join(make_quota(max_concurrency=1)), []

        async def note(name, again=False):
            allowed = await leases.acquire(100.0, goes_first=again)
            order.append(name)
            leases.settle(allowed, answered())

        (holder,) = await start(leases.acquire(100.0))
        tasks = await start(note("first"), note("second"), note("again", again=True))
        leases.settle(holder.result(), answered())
        await asyncio.gather(*tasks)
        return order

    assert run(main()) == ["again", "first", "second"]


def test_after_a_flush_the_quota_has_heard_of_everything():
    async def main():
        quota = make_quota()
        leases = join(quota, 0.02)
        await asyncio.gather(*(call(leases) for _ in range(9)))
        await leases.flush()
        flushed = quota.snapshot().totals.answered
        await asyncio.gather(*(call(leases) for _ in range(5)))
        await leases.close()
        return flushed, quota.snapshot().totals.answered, quota.snapshot().in_flight

    assert run(main()) == (9, 14, 0)


def test_a_flush_that_is_given_up_does_no_harm():
    async def main():
        leases = join(make_quota(), 0.02)
        await call(leases)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(leases.flush(), 0.001)
        await asyncio.gather(*(call(leases) for _ in range(200)))

    run(main())


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_cap_holds_and_is_used_up(workers, share):
    """`share` is a call's actual cost as a share of its worst case, 0.01."""

    async def main():
        quota = make_quota(max_cost_usd=1.0, max_concurrency=16)
        members = [join(quota, 0.002) for _ in range(workers)]
        calls = [call(members[i % workers], usd=0.01, actual=0.01 * share) for i in range(400)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for member in members:
            await member.close()
        return [r for r in results if isinstance(r, Exception)], quota.snapshot().totals.cost_usd

    errors, spent = run(main())
    assert {type(error) for error in errors} == {CostCapError}
    assert 0.98 < spent <= 1.0


def test_a_server_that_begins_to_tell_its_limits_is_heard_at_once():
    async def main():
        quota = make_quota(max_concurrency=8)
        leases = join(quota)
        holders = await start(*(leases.acquire(100.0) for _ in range(8)))
        told = Outcome(Totals(calls=1, answered=1), 100.0, Headers(60.0, 0.0, 60.0))
        waiting = await start(*(call(leases) for _ in range(4)))
        told_at = now()
        for holder in holders:
            leases.settle(holder.result(), told)
        return [await task - told_at for task in waiting]

    assert min(run(main())) > 0.9
