"""The limits of a whole job: requests and tokens a minute, calls in flight, dollars.

There is one `Quota` for all workers of a job, wherever they run. A worker tells it in a `Tally`
which calls wait and what became of the earlier ones, and gets a `Lease`: how many calls it may have
in flight, and when each waiting call may start. Nothing here waits or does I/O.

What the quota knows of the server, from the surest word to the weakest:

1. `x-ratelimit-*` headers: a bucket that is refilled at the server's rate and whose level is
   set by what the server says is left, less what was granted since. A burst that it allows is used.
2. The settings' limits, where no header tells a lower one: paced evenly, hardly a burst.
3. 429s with Retry-After: everyone pauses. Where such headers do not explain them: between two
   moments at which the server's quota was used up it let pass as much as came in, so the calls that
   it accepted between them, over the time between them, are its rate; from then on calls are paced
   at that.
4. 429s that say nothing: the number of calls in flight adapts, by additive increase and one
   multiplicative decrease for each congestion episode (Chiu and Jain, 1989), at least to what the
   server had accepted then.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import CostCapError, DistillError
from common.quota.limits import LearnedRate, Limit
from common.quota.protocol import (
    Amount,
    Headers,
    Lease,
    Snapshot,
    Tally,
    TokenEstimate,
    Totals,
    add,
)

AT_ONCE_SECONDS = 0.02
"""Calls that are sent within this time may arrive in any order."""
HORIZON_SECONDS = 0.12
"""Calls are granted for so long ahead."""
_RENEW_SECONDS, _BUSY_SECONDS = 0.04, 0.06
_HEARTBEAT_SECONDS = 0.1
_DEAD_SECONDS = 20.0
"""A worker that is silent for so long is dead: its slots come back, its calls count as paid."""
_INCREASE, _DECREASE = 0.1, 0.85
"""Calls that the window grows by for each window of answers, and its factor for each episode."""
_PAUSE_SECONDS = 0.5, 30.0
_RETRY_MARGIN = 1.01
"""A quota that comes back at a moment is not asked for just before it."""
_SCOUT_SECONDS = 3.0
"""The others wait for the first call's end for so long at most."""
_HELPED_CALLS, _STRIKES = 10, 3
"""Headers that let fewer calls pass between 429s, so many times in a row, are no help."""
_RECENT_ANSWERS = 100
"""How many answers the estimate of a call's tokens is mostly made from."""
_NO_USD = 1e-9


@dataclass
class _Worker:
    last_seen: float
    slots: int = 0
    held: int = 0
    """The most that it may have in flight: it may not have heard of its last lease yet."""
    in_flight: int = 0
    demand: int = 0
    granted_calls: float = 0.0
    granted_tokens: float = 0.0
    reserved_usd: float = 0.0
    storage_error: str | None = None


class Quota:
    """The one place that knows the job's limits. Times inside are seconds since it was made."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_concurrency: int = 64,
        max_cost_usd: float | None = None,
        spent_usd: float = 0.0,
        sends_scout: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A limit of None is not known.

        `spent_usd` was spent before, and counts against `max_cost_usd`. A scout is a first call
        that goes alone: a teacher that refuses gets one call and not many, and its limits are known
        before the rest.
        """
        self._clock = clock
        self._epoch = clock()
        self.dead_seconds = _DEAD_SECONDS
        self._requests = Limit(requests_per_minute, reserve_calls=0.5, now=0.0)
        self._tokens = Limit(tokens_per_minute, reserve_calls=1.0, now=0.0)
        self._learned = LearnedRate()
        self._max_slots, self._window = max_concurrency, float(max_concurrency)
        self._max_cost_usd, self._spent_usd = max_cost_usd, spent_usd
        self._owner_silence_seconds, self._owner_seen = float("inf"), 0.0
        self._scout_sent_at = None if sends_scout else float("-inf")
        self._workers: dict[str, _Worker] = {}
        self._totals = Totals()
        self._paused_until = self._episode_start = self._told_at = float("-inf")
        self._answered_in_episode = self._refusals_in_a_row = self._strikes = 0
        self._room = 0
        self._failure: DistillError | None = None
        self._is_on_hold = False
        self._lost_calls = self._lost_workers = 0
        self._started = 0.0, 0.0
        self._estimate: TokenEstimate | None = None
        self._estimated_from = 0
        self._joined_at: float | None = None
        self._answered_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """For another machine, whose clock shows another time, and other workers."""
        return self.__dict__ | {"_epoch": self._now(), "_workers": {}, "_joined_at": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch = self._clock() - state["_epoch"]

    def _now(self) -> float:
        return self._clock() - self._epoch

    def renew(self, name: str, tally: Tally) -> Lease:
        """Takes a worker's tally, and gives it a new lease."""
        lease = self._renew(name, tally)
        lease.started, lease.estimate = self._started, self._estimate
        return lease

    def _renew(self, name: str, tally: Tally) -> Lease:
        now = self._now()
        worker = self._workers.setdefault(name, _Worker(now))
        worker.last_seen = now
        if self._joined_at is None:
            self._joined_at = now
        self._expire_workers(now)
        self._absorb(worker, tally, now)
        pause = max(0.0, self._paused_until - now)
        owner_is_silent = now - self._owner_seen > self._owner_silence_seconds
        before, worker.slots = worker.slots, self._share_slots(worker)
        worker.held = max(worker.slots, worker.in_flight, before if tally.demand else 0)
        if self._failure or owner_is_silent or self._is_on_hold:
            worker.slots = worker.in_flight
            return Lease(0, [], _HEARTBEAT_SECONDS, 0.0, self._failure)
        if pause:
            return Lease(worker.slots, [], min(pause, _HEARTBEAT_SECONDS), pause)
        if self._scout_sent_at is None and tally.waiting:
            worker.slots = 1
            delays, _ = self._grant(worker, tally.waiting[:1], now)
            self._scout_sent_at = now if delays else None
            return Lease(worker.slots, delays, _RENEW_SECONDS)
        if self._waits_for_scout(now):
            worker.slots = worker.in_flight + int(worker.granted_calls)
            return Lease(worker.slots, [], _RENEW_SECONDS)
        if self._is_open:
            is_less = worker.slots < worker.held
            return Lease(worker.slots, None, _RENEW_SECONDS if is_less else _HEARTBEAT_SECONDS)
        delays, wait = self._grant(worker, tally.waiting, now)
        renew = min(max(wait, _RENEW_SECONDS), _BUSY_SECONDS)
        return Lease(worker.slots, delays, renew if tally.demand else _HEARTBEAT_SECONDS)

    def _waits_for_scout(self, now: float) -> bool:
        if self._totals.calls:
            return False
        return self._scout_sent_at is None or now - self._scout_sent_at < _SCOUT_SECONDS

    def expect_owner(self, silence_seconds: float) -> None:
        """From now on, nothing is granted while nobody has taken a snapshot for so long."""
        self._owner_silence_seconds, self._owner_seen = silence_seconds, self._now()

    def stop(self, failure: DistillError) -> None:
        """Lets nothing start any more. The first reason stays."""
        self._failure = self._failure or failure

    def snapshot(self, may_start: bool = True) -> Snapshot:
        """The state of the job; also the sign that the job's owner is alive.

        Nothing starts from now on unless it `may_start`.
        """
        now = self._now()
        self._is_on_hold = not may_start
        self._owner_seen = now
        self._expire_workers(now)
        requests = [self._requests.per_minute, self._learned.per_minute]
        storage_errors = (
            worker.storage_error for worker in self._workers.values() if worker.storage_error
        )
        return Snapshot(
            Totals(**asdict(self._totals)),
            len(self._workers),
            self._in_flight,
            int(self._window),
            min((limit for limit in requests if limit is not None), default=None),
            self._tokens.per_minute,
            max(0.0, self._paused_until - now),
            self._failure,
            next(storage_errors, None),
            max(0.0, self._answered_at - self._joined_at) if self._joined_at is not None else 0.0,
            self._lost_calls,
            self._lost_workers,
        )

    @property
    def _is_open(self) -> bool:
        return (
            self._requests.per_minute is None
            and self._tokens.per_minute is None
            and not self._learned.is_active
            and self._max_cost_usd is None
        )

    @property
    def _in_flight(self) -> int:
        return sum(worker.in_flight for worker in self._workers.values())

    def _absorb(self, worker: _Worker, tally: Tally, now: float) -> None:
        worker.in_flight, worker.demand = tally.in_flight, tally.demand
        worker.storage_error = tally.storage_error
        worker.granted_calls, worker.granted_tokens = tally.granted
        self._started = add(self._started, tally.started)
        self._totals.add(tally.totals)
        self._learn_usage(*tally.usage)
        self._spent_usd += tally.totals.cost_usd
        requests, tokens, usd = tally.returned
        worker.reserved_usd = max(0.0, worker.reserved_usd - tally.released_usd - usd)
        self._requests.give_back(requests, now)
        self._tokens.give_back(tokens, now)
        answered = tally.totals.answered
        self._tokens.correct(tally.token_correction, answered, now)
        self._learned.accept(answered, now)
        if answered:
            self._answered_at = now
            self._answered_in_episode += answered
            self._refusals_in_a_row = 0
            self._window = min(self._max_slots, self._window + _INCREASE * answered / self._window)
        if tally.headers is not None:
            self._read_headers(*tally.headers, now)
        for age_seconds, retry_after in tally.throttles:
            self._throttle(now - age_seconds, retry_after, now)
        if tally.failure:
            self.stop(tally.failure)

    def _learn_usage(self, answers: int, characters: float, prompt: int, completion: int) -> None:
        """The latest answers count the most."""
        if not answers or not characters:
            return
        self._estimated_from = min(self._estimated_from + answers, _RECENT_ANSWERS + answers)
        weight = answers / self._estimated_from
        old = self._estimate or TokenEstimate()
        self._estimate = TokenEstimate(
            old.per_character + weight * (prompt / characters - old.per_character),
            old.completion + weight * (completion / answers - old.completion),
        )

    def _read_headers(self, h: Headers, started: Amount, age: float, now: float) -> None:
        """What a call was told that was sent later than any before it tells the most."""
        sent_at = now - age
        if sent_at < self._told_at - AT_ONCE_SECONDS:
            return
        is_new = sent_at > self._told_at + AT_ONCE_SECONDS
        self._told_at = max(self._told_at, sent_at)
        calls_since = self._started[0] - started[0]
        tokens_since = self._started[1] - started[1]
        for worker in self._workers.values():
            calls_since += worker.granted_calls
            tokens_since += worker.granted_tokens
        requests = h.requests_limit, h.requests_remaining, h.requests_reset_seconds
        tokens = h.tokens_limit, h.tokens_remaining, h.tokens_reset_seconds
        self._requests.teach(requests, calls_since, calls_since, age, is_new, now)
        self._tokens.teach(tokens, tokens_since, calls_since, age, is_new, now)

    def _throttle(self, sent_at: float, retry_after: float | None, now: float) -> None:
        """A 429. Those of calls that were sent before the episode began belong to it."""
        limits = self._requests, self._tokens
        are_explained = any(limit.explains(sent_at, now) for limit in limits)
        headers_help = are_explained and self._strikes < _STRIKES
        adapts_window = retry_after is None and not headers_help
        if retry_after is not None:
            self._paused_until = max(self._paused_until, now + retry_after * _RETRY_MARGIN)
        if sent_at < self._episode_start:
            if now > self._episode_start:  # it was counted as accepted
                self._learned.refuse_late()
                self._room -= 1
                if adapts_window:
                    self._window = max(1.0, min(self._window, self._room))
            return
        self._strikes = 0 if self._answered_in_episode >= _HELPED_CALLS else self._strikes + 1
        self._episode_start, self._answered_in_episode, self._room = now, 0, self._in_flight
        if adapts_window:
            self._window = max(1.0, min(self._window * _DECREASE, self._room))
        if retry_after is None:
            self._pause_longer(now)
        elif not headers_help:
            self._learned.use_up(self._in_flight, self._paused_until - now, now)

    def _pause_longer(self, now: float) -> None:
        """Pauses for as long again, where nothing was answered since the last 429."""
        if self._refusals_in_a_row:
            first, longest = _PAUSE_SECONDS
            pause = min(longest, first * 2 ** (self._refusals_in_a_row - 1))
            self._paused_until = max(self._paused_until, now + pause)
        self._refusals_in_a_row += 1

    def _share_slots(self, worker: _Worker) -> int:
        """A fair share, or more where others leave some; all together never above the window."""
        if not worker.demand:
            return worker.in_flight
        others = [other for other in self._workers.values() if other is not worker]
        window = int(self._window)
        share = max(1, window // (len(others) + 1))
        claimed = sum(max(share, o.in_flight) if o.demand else o.in_flight for o in others)
        held = sum(other.held for other in others)
        return max(0, min(max(share, window - claimed), window - held))

    def _grant(
        self, worker: _Worker, waiting: list[tuple[float, float]], now: float
    ) -> tuple[list[float], float]:
        """Delays of the calls that may start within the horizon; the time to the next.

        There are no more than the slots will have room for by then.
        """
        delays: list[float] = []
        wait = 0.0
        room = worker.slots * 3 // 2 - worker.in_flight - int(worker.granted_calls)
        for tokens, usd in waiting[: max(room, 1)]:
            wait = max(
                self._requests.delay(1, now),
                self._tokens.delay(tokens, now),
                self._learned.delay(now),
            )
            if wait > HORIZON_SECONDS:
                break
            if not self._reserve(worker, usd):
                wait = _RENEW_SECONDS
                break
            self._requests.take(1, now)
            self._tokens.take(tokens, now)
            self._learned.take(now)
            worker.granted_calls += 1
            worker.granted_tokens += tokens
            delays.append(wait)
        return delays, wait - HORIZON_SECONDS / 2

    def _reserve(self, worker: _Worker, usd: float) -> bool:
        if self._max_cost_usd is not None:
            reserved = sum(other.reserved_usd for other in self._workers.values())
            if self._spent_usd + reserved + usd > self._max_cost_usd:
                if reserved < _NO_USD:
                    self.stop(CostCapError(self._explain_cap(usd)))
                return False
        worker.reserved_usd += usd
        return True

    def _explain_cap(self, usd: float) -> str:
        return (
            f"DISTILL_LABEL__MAX_COST_USD={self._max_cost_usd:g} is reached: "
            f"${self._spent_usd:.4f} are spent, and the next call may cost up to ${usd:.4f}; "
            "raise it to go on from here"
        )

    def _expire_workers(self, now: float) -> None:
        for name, worker in list(self._workers.items()):
            if now - worker.last_seen > self.dead_seconds:
                self._spent_usd += worker.reserved_usd  # its calls may have been paid for
                self._lost_calls += worker.held
                self._lost_workers += 1
                del self._workers[name]
