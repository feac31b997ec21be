"""A worker's side of the quota: calls wait here until the job's limits let them start."""

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from common.errors import DistillError
from common.quota.protocol import Amount, Headers, Lease, Tally, TokenEstimate, Totals, add
from common.quota.quota import AT_ONCE_SECONDS, Quota

Renew = Callable[[str, Tally], Awaitable[Lease]]
_MOST_WAITING = 512
"""Calls that one tally asks for."""
_SOON_SECONDS = 0.01
"""Tallies are at least this far apart."""


@dataclass(slots=True, eq=False)
class Call:
    """A call that waits, or is in flight. `usd` is what it may cost in the worst case."""

    characters: float
    usd: float
    may_start: asyncio.Future[None]
    tokens: float = 0.0
    """As guessed when it asked for a start."""
    is_granted: bool = False
    starts_at: float = 0.0
    sent_at: float = 0.0
    started: Amount = (0.0, 0.0)
    """What the job has started, this call included, as far as is known here."""


@dataclass(slots=True)
class Outcome:
    """What became of a call."""

    totals: Totals
    used_tokens: float
    headers: Headers | None = None
    is_throttled: bool = False
    retry_after_seconds: float | None = None


class Leases:
    """Starts calls as the job's quota allows. Use it in one event loop."""

    def __init__(
        self,
        renew: Renew,
        storage_error: Callable[[], str | None] = lambda: None,
        estimate: TokenEstimate | None = None,
    ) -> None:
        """`renew` reaches the quota; `storage_error` tells what this worker is held up by.

        `estimate` holds until the quota knows a better one.
        """
        self._renew, self._storage_error = renew, storage_error
        self._estimate = estimate or TokenEstimate()
        self._name = uuid.uuid4().hex[:12]
        self._waiting: deque[Call] = deque()
        self._asked: list[Call] = []
        self._granted: deque[Call] = deque()
        self._in_flight = self._slots = 0
        self._is_open = self._has_demanded = False
        self._paused_until = float("-inf")
        self._failure: DistillError | None = None
        self._tally = Tally()
        self._started = 0.0, 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._renewer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._flushes: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, characters: float, usd: float, again: bool = False) -> Call:
        """Waits until a call may be sent; one that is sent `again` goes first.

        `characters` are those of its prompt; it is guessed from them how many tokens it will use.

        Raises:
            DistillError: the job is to stop: see `fail`.
        """
        if self._failure:
            raise self._failure
        self._loop = asyncio.get_running_loop()
        if self._renewer is None:
            self._renewer = self._loop.create_task(self._renew_regularly())
        call = Call(characters, usd, self._loop.create_future())
        if again:
            self._waiting.appendleft(call)
        else:
            self._waiting.append(call)
        if not self._has_demanded:
            self._hurry.set()
        self._start_calls()
        try:
            await call.may_start
        except asyncio.CancelledError:
            if call.sent_at:  # it had just been let go
                self._in_flight -= 1
                self._return(call)
                self._start_calls()
            raise
        return call

    def settle(self, call: Call, outcome: Outcome) -> None:
        """Ends a call: it is no longer in flight."""
        self._in_flight -= 1
        tally = self._tally
        tally.totals.add(outcome.totals)
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
            self._slots = min(self._slots, self._in_flight)  # until the quota has heard of it
            self._hurry.set()
        self._start_calls()

    def _note_headers(self, headers: Headers, call: Call) -> None:
        """Keeps the latest; of calls that were sent at once, the one that left the least."""
        if self._is_open and (headers.requests_limit or headers.tokens_limit):
            self._is_open = False  # until the quota has heard of it
            self._hurry.set()
        latest = self._tally.headers
        if latest is not None:
            is_older = call.sent_at < latest[2] - AT_ONCE_SECONDS
            is_newer = call.sent_at > latest[2] + AT_ONCE_SECONDS
            if is_older or (not is_newer and _left(headers) > _left(latest[0])):
                return
        self._tally.headers = headers, call.started, call.sent_at

    def fail(self, error: DistillError) -> None:
        """Stops the whole job: what waits gets the error, what is in flight goes on to its end."""
        self._tally.failure = error
        self._stop(error)
        self._hurry.set()

    async def flush(self) -> None:
        """Returns when the quota has heard of everything that was settled."""
        if self._renewer is None or self._renewer.done():
            return
        assert self._loop is not None
        heard = self._loop.create_future()
        self._flushes.append(heard)
        self._hurry.set()
        await heard

    async def close(self) -> None:
        """Sends the last tally."""
        if self._renewer is None:
            return
        await self.flush()  # what is on its way to the quota would be lost otherwise
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
            elif self._is_open and self._waiting:
                call = self._waiting.popleft()
            else:
                break
            if call.may_start.done():  # its asker has gone
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
        for call in (*self._granted, *self._asked, *self._waiting):
            if not call.may_start.done():
                call.may_start.set_exception(self._failure)
        self._granted.clear()
        self._asked.clear()
        self._waiting.clear()

    def _take_tally(self) -> Tally:
        now = self._now()
        tally, self._tally = self._tally, Tally()
        tally.in_flight = self._in_flight
        tally.demand = len(self._waiting) + len(self._granted)
        tally.granted = len(self._granted), sum(call.tokens for call in self._granted)
        tally.storage_error = self._storage_error()
        tally.throttles = [(now - sent_at, wait) for sent_at, wait in tally.throttles]
        if tally.headers is not None:
            headers, started, sent_at = tally.headers
            tally.headers = headers, started, now - sent_at
        if not self._is_open:
            room = self._slots + self._slots // 2 - self._in_flight - len(self._granted)
            count = min(len(self._waiting), max(room, 1), _MOST_WAITING)
            self._asked = [self._waiting.popleft() for _ in range(count)]
            for call in self._asked:
                call.tokens = self._estimate.guess(call.characters)
            tally.waiting = [(call.tokens, call.usd) for call in self._asked]
        self._has_demanded = tally.demand > 0
        if not tally.demand:
            self._slots = min(self._slots, self._in_flight)
        return tally

    async def _renew_regularly(self) -> None:
        while True:
            self._hurry.clear()
            flushes, self._flushes = self._flushes, []
            try:
                lease = await self._renew(self._name, self._take_tally())
            except Exception as error:  # the quota is far away, and gone
                self._stop(DistillError(f"the job's quota is gone ({error}); run again"))
                flushes += self._flushes
                return
            finally:
                for heard in flushes:
                    if not heard.done():
                        heard.set_result(None)
            self._apply(lease)
            await asyncio.sleep(_SOON_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lease.renew_seconds - _SOON_SECONDS):
                    await self._hurry.wait()

    def _apply(self, lease: Lease) -> None:
        asked, self._asked = self._asked, []
        self._slots, self._is_open = lease.slots, lease.delays is None
        self._started = add(lease.started, self._tally.started)
        self._estimate = lease.estimate or self._estimate
        delays = lease.delays or []
        self._waiting.extendleft(reversed(asked[len(delays) :]))
        now = self._now()
        for call, delay in zip(asked, delays, strict=False):
            call.is_granted, call.starts_at = True, now + delay
            self._granted.append(call)
        if lease.failure:
            self._stop(lease.failure)
        elif lease.pause_seconds:
            self._pause(lease.pause_seconds)
        self._start_calls()


def reach_quota(quota: Quota) -> Renew:
    """The way to a quota in this process."""

    async def renew(name: str, tally: Tally) -> Lease:
        return quota.renew(name, tally)

    return renew


def _left(headers: Headers) -> tuple[float, float]:
    unknown = float("inf")
    requests, tokens = headers.requests_remaining, headers.tokens_remaining
    return (
        unknown if requests is None else requests,
        unknown if tokens is None else tokens,
    )
