"""A worker's side of the quota: calls wait here until the job's limits allow them to start."""

import asyncio
import contextlib
import math
import uuid
from collections import deque
from collections.abc import Awaitable, Callable

from common.errors import DistillError
from common.quota.calls import Call, Outcome
from common.quota.protocol import Headers, Lease, Tally, TokenEstimate, add, min_rates
from common.quota.quota import AT_ONCE_SECONDS, Quota

Renew = Callable[[str, Tally], Awaitable[Lease]]
_MAX_REQUESTED = 512
"""The most calls that one tally requests."""
_MIN_RENEW_SECONDS = 0.01
"""The minimum time between two tallies."""


class Leases:
    """Starts calls as the job's quota allows, in one event loop."""

    def __init__(
        self,
        renew: Renew,
        storage_error: Callable[[], str | None] = lambda: None,
        estimate: TokenEstimate | None = None,
    ) -> None:
        """`renew` exchanges a tally for a lease, which may replace the `estimate`.

        `storage_error` returns why this worker cannot write to the storage, if it cannot.
        """
        self._renew, self._storage_error = renew, storage_error
        self._estimate = estimate or TokenEstimate()
        self._name = uuid.uuid4().hex[:12]
        self._waiting: deque[Call] = deque()
        self._requested: list[Call] = []
        self._granted: deque[Call] = deque()
        self._in_flight = self._slots = 0
        self._is_unlimited = self._had_demand = False
        self._paused_until = float("-inf")
        self._failure: DistillError | None = None
        self.adaptations: frozenset[str] = frozenset()
        self.rates: tuple[float, float] | None = None
        """See `Tally`."""
        self.is_outage = False
        self.answered = 0
        """The job's answers, as far as this worker knows."""
        self._resting: list[tuple[float, str]] = []
        self._tally = Tally()
        self._started = 0.0, 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._renewer: asyncio.Task[None] | None = None
        self._renew_now = asyncio.Event()
        self._flushes: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(
        self,
        characters: float,
        bound_cost: Callable[[], float] = lambda: 0.0,
        goes_first: bool = False,
    ) -> Call:
        """Waits until a call may be sent, before others if it `goes_first`, as a retry does.

        Its tokens are estimated from the prompt's `characters`; `bound_cost` gives the most dollars
        that it may cost.

        Raises:
            DistillError: the job stops, see `fail`.
        """
        if self._failure:
            raise self._failure
        self._loop = asyncio.get_running_loop()
        if self._renewer is None:
            self._renewer = self._loop.create_task(self._renew_regularly())
        call = Call(characters, bound_cost, self._loop.create_future())
        if goes_first:
            self._waiting.appendleft(call)
        else:
            self._waiting.append(call)
        if not self._had_demand:
            self._renew_now.set()
        self._start_calls()
        try:
            await call.may_start
        except asyncio.CancelledError:
            if call.sent_at:  # it had just started
                self._in_flight -= 1
                self._return(call)
                self._start_calls()
            raise
        return call

    def learn(self, adaptations: frozenset[str]) -> None:
        """Tells all workers how the teacher takes requests."""
        self.adaptations |= adaptations
        self._tally.adaptations |= adaptations
        self._renew_now.set()

    async def rest(self, seconds: float, reason: str) -> None:
        """Sleeps before a retry; the progress says so."""
        if seconds <= 0:
            return
        waiting = self._now() + seconds, reason
        self._resting.append(waiting)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._resting.remove(waiting)

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Ends a call, which is then no longer in flight."""
        self._in_flight -= 1
        tally = self._tally
        tally.totals.add(outcome.totals)
        if outcome.totals.answered:
            self.answered += outcome.totals.answered
            tally.faults.clear()  # the teacher is not down
        tally.token_correction += outcome.used_tokens - call.tokens
        if outcome.totals.prompt_tokens:
            answers, characters, prompt, completion = tally.usage
            tally.usage = (
                answers + 1,
                characters + call.characters,
                prompt + outcome.totals.prompt_tokens,
                completion + outcome.totals.completion_tokens,
            )
        tally.released_usd += call.usd if call.is_granted else 0.0
        if outcome.headers:
            self._note_headers(outcome.headers, call)
        if outcome.is_throttled:
            tally.throttles.append((call.sent_at, outcome.retry_after_seconds))
            self._pause(outcome.retry_after_seconds or 0.0)
        tally.rates = min_rates(tally.rates, outcome.rates)
        if outcome.refusal:
            tally.refusals.append(outcome.refusal)
        if outcome.fault:
            tally.faults.append(outcome.fault)
        if outcome.is_throttled or outcome.refusal or outcome.fault:
            self._slots = min(self._slots, self._in_flight)  # until the next lease
            self._renew_now.set()
        self._start_calls()

    def _note_headers(self, headers: Headers, call: Call) -> None:
        """Keeps the latest headers; of calls sent at the same time, those with the least left."""
        if self._is_unlimited and (headers.requests_limit or headers.tokens_limit):
            self._is_unlimited = False  # until the next lease
            self._renew_now.set()
        latest = self._tally.headers
        if latest is not None:
            is_older = call.sent_at < latest[2] - AT_ONCE_SECONDS
            is_newer = call.sent_at > latest[2] + AT_ONCE_SECONDS
            if is_older or (not is_newer and _remaining(headers) > _remaining(latest[0])):
                return
        self._tally.headers = headers, call.started, call.sent_at

    def fail(self, error: DistillError) -> None:
        """Stops the whole job: waiting calls get the error, calls in flight complete."""
        self._tally.failure = error
        self._stop(error)
        self._renew_now.set()

    async def flush(self) -> None:
        """Returns once the quota has the outcome of every settled call."""
        if self._renewer is None or self._renewer.done():
            return
        assert self._loop is not None
        flushed = self._loop.create_future()
        self._flushes.append(flushed)
        self._renew_now.set()
        await flushed

    async def close(self) -> None:
        """Sends the last tally."""
        if self._renewer is None:
            return
        await self.flush()  # otherwise a tally in transit would be lost
        self._renewer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._renewer
        self._renewer = None
        await self._renew(self._name, self._take_tally())

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    def _start_calls(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while now >= self._paused_until and self._in_flight < self._slots:
            if self._granted and self._granted[0].starts_at <= now:
                call = self._granted.popleft()
            elif self._is_unlimited and self._waiting:
                call = self._waiting.popleft()
            else:
                break
            if call.may_start.done():  # cancelled
                self._return(call)
                continue
            call.sent_at = now
            if not call.is_granted:
                call.tokens = self._estimate.guess(call.characters)
            amount = 1.0, call.tokens
            call.started = self._started = add(self._started, amount)
            self._tally.started = add(self._tally.started, amount)
            self._in_flight += 1
            call.may_start.set_result(None)
        if self._in_flight < self._slots and (self._granted or self._waiting):
            first = self._granted[0].starts_at if self._granted else now
            if (starts_at := max(first, self._paused_until)) > now:
                self._timer = self._loop.call_at(starts_at, self._start_calls)

    def _return(self, call: Call) -> None:
        if call.is_granted:
            calls, tokens, usd = self._tally.returned
            self._tally.returned = calls + 1, tokens + call.tokens, usd + call.usd
            call.is_granted = False

    def _pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, self._now() + seconds)
        for call in reversed(self._granted):
            self._return(call)
            self._waiting.appendleft(call)
        self._granted.clear()

    def _stop(self, error: DistillError) -> None:
        self._failure = self._failure or error
        for call in (*self._granted, *self._requested, *self._waiting):
            if not call.may_start.done():
                call.may_start.set_exception(self._failure)
        self._granted.clear()
        self._requested.clear()
        self._waiting.clear()

    def _take_tally(self) -> Tally:
        now = self._now()
        tally, self._tally = self._tally, Tally()
        tally.in_flight = self._in_flight
        tally.demand = len(self._waiting) + len(self._granted)
        tally.granted = len(self._granted), sum(call.tokens for call in self._granted)
        tally.storage_error = self._storage_error()
        if self._resting:
            until, reason = max(self._resting)
            tally.resting = len(self._resting), max(0.0, until - now), reason
        tally.throttles = [(now - sent_at, wait) for sent_at, wait in tally.throttles]
        if tally.headers is not None:
            headers, started, sent_at = tally.headers
            tally.headers = headers, started, now - sent_at
        if not self._is_unlimited:
            room = self._slots + self._slots // 2 - self._in_flight - len(self._granted)
            count = min(len(self._waiting), max(room, 1), _MAX_REQUESTED)
            self._requested = [self._waiting.popleft() for _ in range(count)]
            for call in self._requested:
                call.tokens = self._estimate.guess(call.characters)
                call.usd = call.bound_cost()
            tally.waiting = [(call.tokens, call.usd) for call in self._requested]
        self._had_demand = tally.demand > 0
        if not tally.demand:
            self._slots = min(self._slots, self._in_flight)
        return tally

    async def _renew_regularly(self) -> None:
        while True:
            self._renew_now.clear()
            flushes, self._flushes = self._flushes, []
            try:
                lease = await self._renew(self._name, self._take_tally())
            except Exception as error:  # the quota's actor has died
                self._stop(DistillError(f"the job's quota is gone ({error}); run again"))
                flushes += self._flushes
                return
            finally:
                for flushed in flushes:
                    if not flushed.done():
                        flushed.set_result(None)
            self._apply(lease)
            await asyncio.sleep(_MIN_RENEW_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lease.renew_seconds - _MIN_RENEW_SECONDS):
                    await self._renew_now.wait()

    def _apply(self, lease: Lease) -> None:
        requested, self._requested = self._requested, []
        self._slots, self._is_unlimited = lease.slots, lease.delays is None
        self._started = add(lease.started, self._tally.started)
        self.adaptations |= lease.adaptations
        self.rates = lease.rates
        self.answered, self.is_outage = max(self.answered, lease.answered), lease.is_outage
        self._estimate = lease.estimate or self._estimate
        delays = lease.delays or []
        self._waiting.extendleft(reversed(requested[len(delays) :]))
        now = self._now()
        for call, delay in zip(requested, delays, strict=False):
            call.is_granted, call.starts_at = True, now + delay
            self._granted.append(call)
        if lease.failure:
            self._stop(lease.failure)
        elif lease.pause_seconds:
            self._pause(lease.pause_seconds)
        self._start_calls()


def reach_quota(quota: Quota) -> Renew:
    """Renews leases at a quota in this process."""

    async def renew(name: str, tally: Tally) -> Lease:
        return quota.renew(name, tally)

    return renew


def _remaining(headers: Headers) -> tuple[float, float]:
    requests, tokens = headers.requests_remaining, headers.tokens_remaining
    return math.inf if requests is None else requests, math.inf if tokens is None else tokens
