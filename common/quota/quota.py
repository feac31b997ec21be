"""The limits of a whole job: requests and tokens a minute, calls in flight, dollars.

All workers of a job share one `Quota`. A worker sends a `Tally` of its waiting calls and of the
results since the last one, and gets a `Lease`: how many calls it may have in flight, and when each
waiting call may start. Nothing here waits or does I/O.

Sources of limits, the most reliable first:

1. `x-ratelimit-*` headers: a token bucket that refills at the server's rate; its level is what the
   headers say is left, less what was granted since. The server's bursts are used.
2. The settings' limits, unless a header has a lower one: evenly paced, with a small burst.
3. 429s with Retry-After: all calls pause. If headers do not explain them, calls are paced at an
   estimated rate: the calls accepted between two moments when the server's quota was used up,
   divided by the time between them.
4. 429s without Retry-After: the number of calls in flight adapts, by additive increase and one
   multiplicative decrease per congestion episode (Chiu and Jain, 1989), at least down to what the
   server had accepted then.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import CostCapError, DistillError
from common.quota.health import Health
from common.quota.pace import Pace
from common.quota.protocol import (
    Amount,
    Headers,
    Lease,
    Snapshot,
    Tally,
    TokenEstimate,
    Totals,
    min_rates,
)

AT_ONCE_SECONDS = 0.02
"""Calls sent within this time may arrive in any order."""
HORIZON_SECONDS = 0.12
"""Calls are granted this long ahead."""
_RENEW_SECONDS, _BUSY_SECONDS = 0.04, 0.06
_HEARTBEAT_SECONDS = 0.1
_DEAD_SECONDS = 20.0
"""A worker without a tally for this long has crashed: its calls count as paid."""
_INCREASE, _DECREASE = 0.1, 0.85
"""The window's growth in calls per window of answers, and its factor per congestion episode."""
_PAUSE_SECONDS = 0.5, 3.0
_RETRY_MARGIN = 1.01
"""A factor on Retry-After, so that no call arrives just before the quota is back."""
_SCOUT_SECONDS = 3.0
"""The longest that all calls wait for the first; then a few more start."""
_UNPROVEN_CALLS = 4
"""The most calls in flight before the first has ended: each may be refused."""
_HELPED_CALLS, _STRIKES = 10, 3
"""Headers are ignored after 3 episodes in a row with fewer than 10 answers between 429s."""
_RECENT_ANSWERS = 100
"""The number of answers that dominate the estimate of a call's tokens."""
_NO_USD = 1e-9
_LONG_SECONDS = 5.0
"""If headers keep calls waiting longer, the snapshot says so."""


@dataclass
class _Worker:
    last_seen: float
    slots: int = 0
    held: int = 0
    """The most that it may have in flight: its last lease may not have arrived yet."""
    in_flight: int = 0
    demand: int = 0
    granted_calls: float = 0.0
    granted_tokens: float = 0.0
    reserved_usd: float = 0.0
    storage_error: str | None = None
    resting: tuple[int, float, str] = (0, 0.0, "")


class Quota:
    """The job's limits. Its times are seconds since it was created."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_concurrency: int = 64,
        max_cost_usd: float | None = None,
        spent_usd: float = 0.0,
        sends_scout: bool = False,
        has_price: bool = True,
        health: Health | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A limit of None is unknown; `spent_usd` counts towards `max_cost_usd`.

        A scout is a first call that goes alone: a refusal then costs one call only, and headers
        arrive before the other calls start. If the cost is capped without a price, they wait for
        what the scout's reply says of its cost. `health` decides when failing calls end the job.
        """
        self._clock, self._epoch = clock, clock()
        self.dead_seconds = _DEAD_SECONDS
        self._pace = Pace(requests_per_minute, tokens_per_minute)
        self._health = health or Health()
        self._adaptations: frozenset[str] = frozenset()
        self._needs_rates = max_cost_usd is not None and not has_price
        self._rates: tuple[float, float] | None = None
        self._max_slots, self._window = max_concurrency, float(max_concurrency)
        self._max_cost_usd, self._spent_usd = max_cost_usd, spent_usd
        self._owner_timeout_seconds, self._owner_seen = float("inf"), 0.0
        self._sends_scout = sends_scout
        self._scout_sent_at = None if sends_scout else float("-inf")
        self._workers: dict[str, _Worker] = {}
        self._totals = Totals()
        self._paused_until = self._episode_start = self._headers_sent_at = float("-inf")
        self._answered_in_episode = self._refusals_in_a_row = self._strikes = 0
        self._room = 0
        self._failure: DistillError | None = None
        self._is_on_hold = False
        self._lost_calls = self._lost_workers = 0
        self._estimate: TokenEstimate | None = None
        self._estimated_from = 0
        self._joined_at: float | None = None
        self._answered_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """For another machine, with its own clock and workers."""
        return self.__dict__ | {"_epoch": self._now(), "_workers": {}, "_joined_at": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch = self._clock() - state["_epoch"]

    def _now(self) -> float:
        return self._clock() - self._epoch

    def renew(self, name: str, tally: Tally) -> Lease:
        """Counts a worker's tally and returns its next lease."""
        lease = self._renew(name, tally)
        lease.started, lease.estimate = self._pace.started, self._estimate
        lease.adaptations, lease.answered = self._adaptations, self._totals.answered
        lease.is_outage, lease.rates = self._health.is_outage, self._rates
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
        owner_is_dead = now - self._owner_seen > self._owner_timeout_seconds
        before, worker.slots = worker.slots, self._share_slots(worker)
        worker.held = max(worker.slots, worker.in_flight, before if tally.demand else 0)
        if self._failure or owner_is_dead or self._is_on_hold:
            worker.slots = worker.in_flight
            return Lease(0, [], _HEARTBEAT_SECONDS, 0.0, self._failure)
        if pause:
            return Lease(worker.slots, [], min(pause, _HEARTBEAT_SECONDS), pause)
        is_scout_due = self._scout_sent_at is None and self._waits_for_scout(now)
        if is_scout_due and tally.waiting:
            worker.slots = 1
            delays, _ = self._grant(worker, tally.waiting[:1], now)
            self._scout_sent_at = now if delays else None
            return Lease(worker.slots, delays, _RENEW_SECONDS)
        if self._waits_for_scout(now):
            worker.slots = worker.in_flight + int(worker.granted_calls)
            return Lease(worker.slots, [], _RENEW_SECONDS)
        if self._pace.is_unlimited and self._max_cost_usd is None:
            renew = _RENEW_SECONDS if worker.slots < worker.held else _HEARTBEAT_SECONDS
            return Lease(worker.slots, None, renew)
        delays, wait = self._grant(worker, tally.waiting, now)
        renew = min(max(wait, _RENEW_SECONDS), _BUSY_SECONDS)
        return Lease(worker.slots, delays, renew if tally.demand else _HEARTBEAT_SECONDS)

    def _waits_for_scout(self, now: float) -> bool:
        if self._needs_rates and self._rates is None:
            return True
        if self._health.has_outcome:
            return False
        return self._scout_sent_at is None or now - self._scout_sent_at < _SCOUT_SECONDS

    def require_heartbeat(self, timeout_seconds: float) -> None:
        """Grants nothing while the last snapshot, the owner's heartbeat, is older than that."""
        self._owner_timeout_seconds, self._owner_seen = timeout_seconds, self._now()

    def stop(self, failure: DistillError) -> None:
        """Stops all further calls; the first failure is kept."""
        self._failure = self._failure or failure

    def snapshot(self, may_start: bool = True) -> Snapshot:
        """The state of the job; also the owner's heartbeat. No call starts unless `may_start`."""
        now = self._now()
        self._is_on_hold = not may_start
        self._owner_seen = now
        self._expire_workers(now)
        storage_errors = (w.storage_error for w in self._workers.values() if w.storage_error)
        return Snapshot(
            Totals(**asdict(self._totals)),
            len(self._workers),
            self._in_flight,
            int(self._window),
            self._pace.requests_per_minute,
            self._pace.tokens_per_minute,
            max(0.0, self._paused_until - now),
            self._failure,
            next(storage_errors, None),
            max(0.0, self._answered_at - self._joined_at) if self._joined_at is not None else 0.0,
            self._lost_calls,
            self._lost_workers,
            self._adaptations,
            self._sum_resting(),
            self._health.describe_outage(now),
            self._health.suspicion,
            self._explain_wait(now),
        )

    def _explain_wait(self, now: float) -> str:
        seconds, said = self._pace.explain_wait(now)
        is_long = seconds > _LONG_SECONDS
        return f"a call every {seconds:,.0f} s, as headers say that {said}" if is_long else ""

    @property
    def _granted(self) -> Amount:
        """What is granted, and not started yet."""
        workers = self._workers.values()
        return sum(w.granted_calls for w in workers), sum(w.granted_tokens for w in workers)

    @property
    def _in_flight(self) -> int:
        return sum(worker.in_flight for worker in self._workers.values())

    def _sum_resting(self) -> tuple[int, float, str]:
        resting = [worker.resting for worker in self._workers.values()]
        _, seconds, reason = max(resting, key=lambda r: r[1], default=(0, 0.0, ""))
        return sum(number for number, _, _ in resting), seconds, reason

    def _absorb(self, worker: _Worker, tally: Tally, now: float) -> None:
        worker.in_flight, worker.demand = tally.in_flight, tally.demand
        worker.storage_error, worker.resting = tally.storage_error, tally.resting
        worker.granted_calls, worker.granted_tokens = tally.granted
        self._totals.add(tally.totals)
        self._update_estimate(*tally.usage)
        self._spent_usd += tally.totals.cost_usd
        requests, tokens, usd = tally.returned
        worker.reserved_usd = max(0.0, worker.reserved_usd - tally.released_usd - usd)
        self._pace.give_back(requests, tokens, now)
        answered, accepted = tally.totals.answered, tally.totals.calls - tally.totals.throttled
        self._pace.count(tally.started, accepted, tally.token_correction, now)
        self._adaptations |= tally.adaptations
        self._rates = min_rates(self._rates, tally.rates)
        if answered:
            self._health.answer()
            self._answered_at = now
            self._answered_in_episode += answered
            self._refusals_in_a_row = 0
            self._window = min(self._max_slots, self._window + _INCREASE * answered / self._window)
        if tally.headers is not None:
            self._apply_headers(*tally.headers, now)
        for age_seconds, retry_after in tally.throttles:
            self._throttle(now - age_seconds, retry_after, now)
        self._pace.learn(now)
        for refusal in tally.refusals:
            self._health.refuse(refusal)
        for fault in tally.faults:
            pause = self._health.fault(fault, now)
            self._paused_until = max(self._paused_until, now + pause)
        if tally.demand and not self._in_flight:
            self._health.keep_waiting(*self._pace.explain_wait(now))
        if failure := tally.failure or self._health.failure:
            self.stop(failure)
        if self._sends_scout and tally.totals.calls and self._waits_for_scout(now):
            self._scout_sent_at = None  # the next call is another scout

    def _update_estimate(
        self, answers: int, characters: float, prompt: int, completion: int
    ) -> None:
        """A moving average of the answers' usage."""
        if not answers or not characters:
            return
        self._estimated_from = min(self._estimated_from + answers, _RECENT_ANSWERS + answers)
        weight = answers / self._estimated_from
        old = self._estimate or TokenEstimate()
        self._estimate = TokenEstimate(
            old.per_character + weight * (prompt / characters - old.per_character),
            old.completion + weight * (completion / answers - old.completion),
        )

    def _apply_headers(self, h: Headers, started: Amount, age: float, now: float) -> None:
        """Ignores headers of a call that was sent before that of the last ones."""
        sent_at = now - age
        if sent_at < self._headers_sent_at - AT_ONCE_SECONDS:
            return
        is_new = sent_at > self._headers_sent_at + AT_ONCE_SECONDS
        self._headers_sent_at = max(self._headers_sent_at, sent_at)
        since = [
            now_started - then + granted
            for now_started, then, granted in zip(
                self._pace.started, started, self._granted, strict=True
            )
        ]
        self._pace.apply_headers(h, (since[0], since[1]), age, is_new, now)

    def _throttle(self, sent_at: float, retry_after: float | None, now: float) -> None:
        """Counts a 429; those of calls sent before the episode started belong to it."""
        tokens = (self._estimate or TokenEstimate()).completion
        is_explained = self._pace.refuse(tokens, sent_at, retry_after, now)
        headers_help = self._pace.has_window or (is_explained and self._strikes < _STRIKES)
        adapts_window = retry_after is None and not headers_help
        if retry_after is not None:
            self._paused_until = max(self._paused_until, now + retry_after * _RETRY_MARGIN)
        if sent_at < self._episode_start:
            if now > self._episode_start:  # it was counted as accepted
                self._pace.correct_refused()
                self._room -= 1
                if adapts_window:
                    self._window = max(1.0, min(self._window, self._room))
            return
        self._strikes = 0 if self._answered_in_episode >= _HELPED_CALLS else self._strikes + 1
        self._episode_start, self._answered_in_episode, self._room = now, 0, self._in_flight
        self._health.throttle(now)
        if adapts_window:
            self._window = max(1.0, min(self._window * _DECREASE, self._room))
        is_smoothed = self._pace.smooth(now)
        if retry_after is None:
            self._pause_longer(now)
        elif not headers_help and not is_smoothed:
            pause = self._paused_until - now
            self._pace.note_exhausted(self._in_flight, pause, now)

    def _pause_longer(self, now: float) -> None:
        """Exponential backoff while there is no answer between 429s."""
        if self._refusals_in_a_row:
            first, longest = _PAUSE_SECONDS
            pause = min(longest, first * 2 ** (self._refusals_in_a_row - 1))
            self._paused_until = max(self._paused_until, now + pause)
        self._refusals_in_a_row += 1

    def _share_slots(self, worker: _Worker) -> int:
        """A fair share of the window, or more if other workers leave some of theirs."""
        if not worker.demand:
            return worker.in_flight
        others = [other for other in self._workers.values() if other is not worker]
        window = self._health.limit_window(int(self._window))
        if self._sends_scout and not self._health.has_outcome:
            window = min(window, _UNPROVEN_CALLS)
        share = max(1, window // (len(others) + 1))
        claimed = sum(max(share, o.in_flight) if o.demand else o.in_flight for o in others)
        held = sum(other.held for other in others)
        return max(0, min(max(share, window - claimed), window - held))

    def _grant(
        self, worker: _Worker, waiting: list[tuple[float, float]], now: float
    ) -> tuple[list[float], float]:
        """The delays of the calls that may start within the horizon; the seconds to the next."""
        delays: list[float] = []
        wait = 0.0
        room = worker.slots * 3 // 2 - worker.in_flight - int(worker.granted_calls)
        for tokens, usd in waiting[: max(room, 1)]:
            wait = self._pace.delay(tokens, self._granted, now)
            if wait > HORIZON_SECONDS:
                break
            if not self._reserve(worker, usd):
                wait = _RENEW_SECONDS
                break
            self._pace.take(tokens, now)
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
            "raise it and run again to resume"
        )

    def _expire_workers(self, now: float) -> None:
        for name, worker in list(self._workers.items()):
            if now - worker.last_seen > self.dead_seconds:
                self._spent_usd += worker.reserved_usd  # its calls may have been paid for
                self._lost_calls += worker.held
                self._lost_workers += 1
                del self._workers[name]
