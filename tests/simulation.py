"""A job's quota and its workers against a simulated server, in virtual time: nothing sleeps."""

import asyncio
import math
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from common.leases import Call, Leases, Outcome
from common.quota import Headers, Lease, Quota, Report, Totals

T = TypeVar("T")
RATE = 1200
"""Requests a minute."""


class _TimeSelector(selectors.DefaultSelector):
    """Where the loop would wait, its time jumps."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for something that never happens"
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _TimeSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


def make_quota(*limits: float | None, **values: Any) -> Quota:
    """A quota by the running loop's clock."""
    return Quota(*limits, clock=asyncio.get_running_loop().time, **values)


def join(quota: Quota, distance: float = 0.0) -> Leases:
    """A worker whose messages to the quota take `distance` seconds, there and back."""

    async def renew(name: str, report: Report) -> Lease:
        await asyncio.sleep(distance / 2)
        lease = quota.renew(name, report)
        await asyncio.sleep(distance / 2)
        return lease

    return Leases(renew)


class Bucket:
    """What a server grants: so much a minute, refilled steadily, `burst` after a quiet time."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self.per_minute, self.burst = per_minute, burst
        self._level, self._at = burst, 0.0

    def level(self) -> float:
        self._level += (now() - self._at) * self.per_minute / 60
        self._level, self._at = min(self.burst, self._level), now()
        return self._level

    def take(self, amount: float) -> None:
        self._level -= amount

    def seconds_until(self, amount: float) -> float:
        return max(0.0, amount - self.level()) * 60 / self.per_minute


class Window(Bucket):
    """The same, refilled all at once every minute."""

    def __init__(self, per_minute: float) -> None:
        super().__init__(per_minute, burst=per_minute)

    def level(self) -> float:
        minute = now() // 60
        if minute > self._at:
            self._level, self._at = self.burst, minute
        return self._level

    def seconds_until(self, amount: float) -> float:
        return 60 - now() % 60 if amount > self.level() else 0.0


@dataclass
class Server:
    requests: Bucket | None = None
    tokens: Bucket | None = None
    slots: int = 10**9
    """Calls that it answers at a time."""
    headers: bool = True
    retry_after: Callable[[float], float | None] = float
    """What it makes of the exact number of seconds."""
    latency: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.in_flight = self.most_in_flight = self.answered = self.refused = 0

    async def ask(self, tokens: float) -> Outcome:
        """One call, with its way there and back."""
        await asyncio.sleep(self.random.uniform(0.001, 0.004))
        kinds = [(self.requests, 1.0), (self.tokens, tokens)]
        buckets = [(bucket, amount) for bucket, amount in kinds if bucket]
        wait = max((bucket.seconds_until(amount) for bucket, amount in buckets), default=0.0)
        if wait or self.in_flight >= self.slots:
            self.refused += 1
            headers = self._tell()
            await asyncio.sleep(0.002)
            totals = Totals(calls=1, throttled=1)
            return Outcome(totals, 0.0, headers, True, self.retry_after(wait))
        for bucket, amount in buckets:
            bucket.take(amount)
        headers = self._tell()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self.latency * self.random.uniform(0.8, 1.2))
        self.in_flight -= 1
        self.answered += 1
        return Outcome(Totals(calls=1, answered=1), tokens, headers)

    def _tell(self) -> Headers | None:
        if not self.headers:
            return None
        told: list[float | None] = []
        for bucket in (self.requests, self.tokens):
            if bucket:
                reset = bucket.seconds_until(bucket.burst)
                told += [bucket.per_minute, max(0, int(bucket.level())), reset]
            else:
                told += [None] * 3
        return Headers(*told)


@dataclass
class Result:
    seconds: float
    throttled: float
    """The share of calls that were answered with a 429."""
    most_in_flight: int


async def send(leases: Leases, server: Server, tokens: float = 100.0, usd: float = 0.0) -> Call:
    """One call, asked again after each 429. Its tokens are not known exactly before."""
    used = tokens * server.random.uniform(0.5, 1.5)
    again = False
    while True:
        call = await leases.acquire(tokens, usd, again)
        outcome = await server.ask(used)
        leases.settle(call, outcome)
        if not outcome.is_throttled:
            return call
        again = True


async def work(
    quota: Quota, server: Server, calls: int, workers: int = 2, distance: float = 0.002
) -> Result:
    """Makes calls by some workers, the first one alone, as the label job does."""
    members = [join(quota, distance) for _ in range(workers)]
    begun = now()
    await send(members[0], server)
    rest: list[Awaitable[Call]] = [send(members[i % workers], server) for i in range(1, calls)]
    await asyncio.gather(*rest)
    seconds = now() - begun
    for member in members:
        await member.close()
    assert server.answered == calls
    assert quota.snapshot().totals.answered == calls
    assert quota.snapshot().in_flight == 0
    share = server.refused / (server.refused + calls)
    return Result(seconds, share, server.most_in_flight)


def round_up(seconds: float) -> float:
    """As a Retry-After in whole seconds."""
    return math.ceil(seconds)


def say_nothing(seconds: float) -> None:
    """As a 429 without Retry-After."""
