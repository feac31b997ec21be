"""A job's quota and its workers against a simulated server, in virtual time: nothing sleeps."""

import asyncio
import math
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from common.quota.calls import Call, Outcome
from common.quota.leases import Leases
from common.quota.protocol import Headers, Lease, Tally, TokenEstimate, Totals
from common.quota.quota import Quota

T = TypeVar("T")


class _TimeSelector(selectors.DefaultSelector):
    """Where the loop would wait, its time jumps."""

    now = 1200.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for something that never happens"
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while it has nothing to do."""

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
    """The running loop's time."""
    return asyncio.get_running_loop().time()


def make_quota(*limits: float | None, **values: Any) -> Quota:
    """A quota by the running loop's time."""
    return Quota(*limits, **values, clock=asyncio.get_running_loop().time)


def join(quota: Quota, distance: float = 0.0, per_character: float = 1.0) -> Leases:
    """A worker whose messages to the quota take `distance` seconds, there and back."""

    async def renew(name: str, tally: Tally) -> Lease:
        await asyncio.sleep(distance / 2)
        lease = quota.renew(name, tally)
        await asyncio.sleep(distance / 2)
        return lease

    return Leases(renew, estimate=TokenEstimate(per_character))


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
        """How long until it holds so much."""
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


class Log(Bucket):
    """A sliding window: at most so much in any `seconds`, as Envoy, Kong and others count."""

    def __init__(self, per_minute: float, seconds: float = 60.0) -> None:
        super().__init__(per_minute, burst=per_minute * seconds / 60)
        self.seconds = seconds
        self._taken: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def level(self) -> float:
        while self._taken and self._taken[0][0] <= now() - self.seconds:
            self._sum -= self._taken.popleft()[1]
        return self.burst - self._sum

    def take(self, amount: float) -> None:
        self._taken.append((now(), amount))
        self._sum += amount

    def seconds_until(self, amount: float) -> float:
        missing = min(amount, self.burst) - self.level()
        for at, taken in self._taken if missing > 0 else ():
            missing -= taken
            if missing <= 0:
                return at + self.seconds - now()
        return 0.0


@dataclass
class Server:
    """A teacher with a quota of requests or of tokens, or with few slots."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    slots: float = math.inf
    """Calls that it answers at a time; it refuses the others."""
    headers: bool = True
    retry_after: Callable[[float], float | None] = float
    """What it makes of the exact number of seconds."""
    latency: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.in_flight = self.most_in_flight = self.answered = self.refused = 0
        self.used_tokens = 0.0

    async def ask(self, tokens: float) -> Outcome:
        """One call, with its way there and back."""
        await asyncio.sleep(self.random.uniform(0.001, 0.004))
        kinds = [(self.requests, 1.0), (self.tokens, tokens)]
        buckets = [(bucket, amount) for bucket, amount in kinds if bucket]
        wait = max((bucket.seconds_until(amount) for bucket, amount in buckets), default=0.0)
        if wait or self.in_flight >= self.slots:
            self.refused += 1
            headers = self.tell()
            await asyncio.sleep(0.002)
            return Outcome(Totals(calls=1, throttled=1), 0.0, headers, True, self.retry_after(wait))
        for bucket, amount in buckets:
            bucket.take(amount)
        headers = self.tell()
        self.used_tokens += tokens
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self.latency * self.random.uniform(0.8, 1.2))
        self.in_flight -= 1
        self.answered += 1
        return Outcome(Totals(calls=1, answered=1, prompt_tokens=round(tokens)), tokens, headers)

    def tell(self) -> Headers | None:
        """Its headers."""
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

    def optimum(self, concurrency: int) -> float:
        """The least seconds that its answers could have taken."""
        seconds = self.answered * self.latency / min(self.slots, concurrency)
        if self.requests:
            rest = self.answered - self.requests.burst
            seconds = max(seconds, rest / self.requests.per_minute * 60)
        if self.tokens:
            seconds = max(seconds, self.used_tokens / self.tokens.per_minute * 60)
        return seconds


@dataclass
class Result:
    """`ratio` is the time to the optimum, `throttled` the share of calls that got a 429."""

    ratio: float
    throttled: float


async def send(leases: Leases, server: Server, tokens: float = 100.0) -> Call:
    """One call, asked again after each 429. Its tokens are not known exactly before."""
    used = tokens * server.random.uniform(0.5, 1.5)
    again = False
    while True:
        call = await leases.acquire(tokens, goes_first=again)
        outcome = await server.ask(used)
        leases.settle(call, outcome)
        if not outcome.is_throttled:
            return call
        again = True


async def work(
    server: Server,
    *told: float | None,
    calls: int = 2400,
    workers: int = 2,
    distance: float = 0.002,
    concurrency: int = 64,
    per_character: float = 1.0,
) -> Result:
    """A whole job: `told` are the limits (requests, tokens) that its settings say.

    A call has 100 characters and uses 100 tokens on average: `per_character` is its first guess.
    """
    quota = make_quota(*told, max_concurrency=concurrency, sends_scout=True)
    members = [join(quota, distance, per_character) for _ in range(workers)]
    begun = now()
    await asyncio.gather(*(send(members[i % workers], server) for i in range(calls)))
    seconds = now() - begun
    for member in members:
        await member.close()
    snapshot = quota.snapshot()
    assert (snapshot.totals.answered, snapshot.in_flight) == (calls, 0)
    assert server.most_in_flight <= concurrency
    share = server.refused / (server.refused + calls)
    return Result(seconds / server.optimum(concurrency), share)
