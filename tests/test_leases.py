"""A worker's side of the quota, in virtual time."""

import asyncio

import pytest

from common.errors import CostCapError, DistillError
from common.leases import Leases, Outcome
from common.quota import Lease, Quota, Report, Totals
from simulation import Server, join, make_quota, now, run, send

DONE = Outcome(Totals(calls=1, answered=1), 100.0)


async def hold(leases: Leases, seconds: float) -> None:
    call = await leases.acquire(100.0, 0.0)
    await asyncio.sleep(seconds)
    leases.settle(call, DONE)


def test_calls_in_flight_stay_below_the_limit_over_all_workers():
    async def main() -> int:
        server = Server(latency=0.3)
        quota = make_quota(max_concurrency=7)
        workers = [join(quota, distance=0.01) for _ in range(3)]
        await asyncio.gather(*(send(workers[i % 3], server) for i in range(300)))
        return server.most_in_flight

    assert run(main()) == 7


def test_two_workers_share_fairly():
    async def main() -> list[float]:
        server, quota = Server(), make_quota(max_concurrency=8)

        async def work(worker: Leases) -> float:
            await asyncio.gather(*(send(worker, server) for _ in range(400)))
            return now()

        begun = now()
        ends = await asyncio.gather(*(work(join(quota)) for _ in range(2)))
        return [end - begun for end in ends]

    first, second = run(main())
    assert first == pytest.approx(second, rel=0.2)


def test_a_call_that_is_sent_again_goes_first():
    async def main() -> list[str]:
        leases, order = join(make_quota(max_concurrency=1)), []

        async def ask(name: str, again: bool) -> None:
            call = await leases.acquire(1.0, 0.0, again)
            order.append(name)
            leases.settle(call, DONE)

        busy = await leases.acquire(1.0, 0.0)
        asks = [asyncio.create_task(ask(name, name == "again")) for name in ("a", "b", "again")]
        await asyncio.sleep(1)
        leases.settle(busy, DONE)
        await asyncio.gather(*asks)
        return order

    assert run(main()) == ["again", "a", "b"]


@pytest.mark.parametrize("limits", [(), (60_000,)])
def test_a_waiting_call_that_is_cancelled_leaves_its_slot(limits):
    async def main() -> None:
        leases = join(make_quota(*limits, max_concurrency=1))
        holder = asyncio.create_task(hold(leases, 1.0))
        await asyncio.sleep(0.1)
        waiter = asyncio.create_task(leases.acquire(1.0, 0.0))
        await asyncio.sleep(0.1)
        waiter.cancel()
        await holder
        await asyncio.wait_for(hold(leases, 0.1), 5)

    run(main())


def test_after_a_failure_waiters_get_it_and_calls_in_flight_end():
    async def main() -> None:
        quota = make_quota(max_concurrency=2)
        one, other = join(quota), join(quota)
        held = [await one.acquire(1.0, 0.0), await one.acquire(1.0, 0.0)]
        waiting = [asyncio.create_task(leases.acquire(1.0, 0.0)) for leases in (one, other)]
        await asyncio.sleep(0.1)
        one.fail(CostCapError("enough"))
        for waiter in waiting:
            with pytest.raises(CostCapError, match="enough"):
                await waiter
        with pytest.raises(CostCapError):
            await other.acquire(1.0, 0.0)
        for call in held:
            one.settle(call, DONE)
        await one.close()
        snapshot = quota.snapshot()
        assert (snapshot.in_flight, snapshot.totals.answered) == (0, 2)
        assert snapshot.failure == ("CostCapError", "enough")

    run(main())


def test_flush_tells_the_quota_everything():
    async def main() -> int:
        quota = make_quota(max_concurrency=4)
        leases = join(quota, distance=0.2)
        await asyncio.gather(*(hold(leases, 0.01) for _ in range(9)))
        await leases.flush()
        return quota.snapshot().totals.answered

    assert run(main()) == 9


def test_a_quota_that_cannot_be_reached_stops_the_worker():
    async def renew(name: str, report: Report) -> Lease:
        raise ConnectionError("the actor died")

    async def main() -> None:
        with pytest.raises(DistillError, match="the actor died"):
            await Leases(renew).acquire(1.0, 0.0)

    run(main())


def test_money_is_never_promised_twice():
    """Calls that cost as much as they can, until the cap ends them."""

    async def main() -> tuple[float, int]:
        quota = make_quota(max_concurrency=16, max_cost_usd=1.0)
        workers = [join(quota, distance=0.01) for _ in range(2)]
        answered = 0

        async def ask(leases: Leases) -> None:
            nonlocal answered
            call = await leases.acquire(1.0, 0.03)
            await asyncio.sleep(0.2)
            leases.settle(call, Outcome(Totals(calls=1, answered=1, cost_usd=0.03), 1.0))
            answered += 1

        calls = (ask(workers[i % 2]) for i in range(100))
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in errors if error} == {CostCapError}
        for worker in workers:
            await worker.close()
        return quota.snapshot().totals.cost_usd, answered

    cost, answered = run(main())
    assert answered == 33
    assert cost == pytest.approx(0.99)


def test_a_quota_works_in_real_time_too():
    async def main() -> int:
        quota = Quota(max_concurrency=4)

        async def renew(name: str, report: Report) -> Lease:
            return quota.renew(name, report)

        leases = Leases(renew)
        await asyncio.gather(*(hold(leases, 0.001) for _ in range(20)))
        await leases.close()
        return quota.snapshot().totals.answered

    assert asyncio.run(main()) == 20
