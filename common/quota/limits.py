"""The limits of requests and tokens: told by the settings or the server, or learned from 429s."""

import math

_SAFETY = 0.998
"""The share of a told limit that is used: the server's clock and ours are not the same."""
_JITTER_SECONDS = 0.02
"""Calls may arrive so much closer together than they were sent."""
_FIRST_BURST_SECONDS, _BURST_SECONDS, _TRIAL_SECONDS = 0.25, 1.0, 3.0
"""How much of a told limit may be used at once: at first, and after so long at its full rate."""
_PROBE_SECONDS, _SEARCH_STEP, _PROBE_STEP = 1.0, 0.4, 0.02
"""A learned rate is raised by a step after so long without a 429.

The step doubles with each raise; the time doubles with each 429 that a raise brings.
"""
_RELIABLE_CALLS, _LONGEST_PROBE_SECONDS = 20, 30.0
"""So many calls tell a rate well enough."""
_SUSTAINED_SHARE, _BACK_OFF = 1 / 3, 0.8
"""What is taken to last of a first burst; the factor while too few calls tell a rate."""


class Bucket:
    """A token bucket, as the moment `empty_at` at which it was or will be empty.

    Taking is immediate, and may leave a debt; whoever takes waits for `delay` then.
    """

    def __init__(self, rate: float, burst: float, first_burst: float, now: float) -> None:
        """`rate` is in units a second, the bursts in units."""
        self.rate, self.burst = rate, burst
        self.empty_at = now - first_burst / rate

    def delay(self, amount: float, now: float) -> float:
        """Until the amount is there; one larger than the bucket waits until that is full."""
        return max(0.0, self.empty_at + min(amount, self.burst) / self.rate - now)

    def take(self, amount: float, now: float) -> None:
        """Takes an amount, into debt if need be."""
        self.empty_at = max(self.empty_at, now - self.burst / self.rate) + amount / self.rate

    def level(self, now: float) -> float:
        """What is there; a debt is negative."""
        return (now - self.empty_at) * self.rate

    def set_level(self, level: float, now: float) -> None:
        """Sets what is there."""
        self.empty_at = now - level / self.rate

    def set_rate(self, rate: float, now: float) -> None:
        """Sets the rate; the level stays."""
        level = self.level(now)
        self.rate = rate
        self.set_level(level, now)


class Limit:
    """One kind of limit, requests or tokens: what the settings say, and what the headers say."""

    def __init__(self, told_per_minute: float | None, reserve_calls: float, now: float) -> None:
        """`reserve_calls` of typical size are left to the server."""
        self._reserve_calls = reserve_calls
        self._told: Bucket | None = None
        self._server: Bucket | None = None
        self._server_limit: float | None = None
        self.granted = self._typical = self._variance = 0.0
        if told_per_minute:
            rate = told_per_minute / 60 * _SAFETY
            burst = rate * _FIRST_BURST_SECONDS
            self._told = Bucket(rate, burst, burst, now)

    @property
    def per_minute(self) -> float | None:
        """The lower of the limits that are known."""
        told = self._told.rate * 60 / _SAFETY if self._told else None
        known = [limit for limit in (told, self._server_limit) if limit is not None]
        return min(known) if known else None

    def _buckets(self) -> list[Bucket]:
        """The told limit counts unless the server itself tells of one that is no higher."""
        if self._server is None:
            return [self._told] if self._told else []
        assert self._server_limit is not None
        told_is_lower = self._told is not None and self._told.rate * 61 < self._server_limit
        return [b for b in (self._server, self._told if told_is_lower else None) if b]

    def delay(self, amount: float, now: float) -> float:
        """Seconds until every limit has room for an amount."""
        return max((bucket.delay(amount, now) for bucket in self._buckets()), default=0.0)

    def take(self, amount: float, now: float) -> None:
        """Takes an amount, into debt if need be."""
        self.granted += amount
        self._typical += (amount - self._typical) / 16 if self._typical else amount
        self._take(amount, now)
        if self._told and self.granted > self._told.rate * _TRIAL_SECONDS:
            self._told.burst = self._told.rate * _BURST_SECONDS

    def give_back(self, amount: float, now: float) -> None:
        """Gives back what was taken and not used."""
        self.granted -= amount
        self._take(-amount, now)

    def _take(self, amount: float, now: float) -> None:
        for bucket in (self._told, self._server):
            if bucket:
                bucket.take(amount, now)

    def correct(self, amount: float, calls: int, now: float) -> None:
        """Counts what calls used beyond the estimates; the server's headers tell that anyway."""
        if self._told:
            self._told.take(amount, now)
        if calls:
            self._variance += (amount**2 / calls - self._variance) / 16

    def teach(
        self,
        told: tuple[float | None, float | None, float | None],
        amount_since: float,
        calls_since: float,
        age_seconds: float,
        is_new: bool,
        now: float,
    ) -> None:
        """The headers (limit, remaining, reset) of a call that was sent `age_seconds` ago.

        `amount_since` was sent since, or will be, in so many calls. If the headers are not new,
        they can only lower the level.
        """
        limit, remaining, reset_seconds = told
        if limit is None or remaining is None or limit < 1:
            return
        rate = limit / 60
        if reset_seconds and remaining < limit:  # a limit by the day is refilled more slowly
            rate = min(rate, (limit - remaining) / reset_seconds)
        if self._server is None:
            self._server = Bucket(rate, 1.0, 0.0, now)
        self._server_limit = limit
        self._server.burst = max(self._server.burst, remaining + 1)
        self._server.set_rate(rate, now)
        reserve = (
            self._typical * self._reserve_calls
            + rate * _JITTER_SECONDS
            + 3 * math.sqrt(self._variance * max(0.0, calls_since))
        )
        level = remaining - min(reserve, self._server.burst / 4) + rate * age_seconds
        level = min(level, self._server.burst) - amount_since
        if is_new or level < self._server.level(now):
            self._server.set_level(level, now)

    def explains(self, sent_at: float, now: float) -> bool:
        """Whether a call that was sent then got a 429 for what the headers say was left."""
        if self._server is None:
            return False
        left = self._server.level(now) - self._server.rate * (now - sent_at)
        return left < 2 * self._typical + self._server.rate * _JITTER_SECONDS


class LearnedRate:
    """A request rate learned from 429s, see the third point of `common.quota.quota`."""

    def __init__(self) -> None:
        self._anchor: float | None = None
        self._accepted = self._granted = 0.0
        self._first_at: float | None = None
        self._bucket: Bucket | None = None
        self._burst_seconds = _BURST_SECONDS
        self._probe_at, self._probe_seconds = 0.0, _PROBE_SECONDS
        self._was_raised, self._step = False, _SEARCH_STEP

    @property
    def per_minute(self) -> float | None:
        """Calls a minute; None while nothing was learned."""
        return self._bucket.rate * 60 if self._bucket else None

    @property
    def is_active(self) -> bool:
        """Whether there is a rate to keep."""
        return self._bucket is not None

    def accept(self, calls: int, now: float) -> None:
        """So many calls were answered. Now and then a higher rate is tried."""
        self._accepted += calls
        if self._first_at is None:
            self._first_at = now
        if self._bucket and now >= self._probe_at:
            self._bucket.set_rate(self._bucket.rate * (1 + self._step), now)
            self._step = min(_SEARCH_STEP, self._step * 2)
            self._probe_at = now + self._probe_seconds
            self._was_raised = True

    def use_up(self, in_flight: int, pause: float, now: float) -> None:
        """The server's quota is used up, with so many calls accepted and not yet answered."""
        accepted = self._accepted + in_flight
        if accepted < 1:  # nothing passed, as somebody else had used it up: that tells no rate
            self._accepted, self._granted, self._first_at = -in_flight, 0.0, now + pause
            if self._anchor is not None:
                self._anchor = now + pause
        elif self._anchor is None:
            # Its rate is lower than what it let pass so far, for a burst is included: a guess.
            assert self._first_at is not None
            elapsed = max(now - self._first_at, 0.1)
            rate = max(accepted, self._granted) / elapsed
            rate *= min(1.0, _SUSTAINED_SHARE + elapsed / 60)
            self._bucket = Bucket(rate, 1, -1, now)
            self._anchor, self._accepted = now, -in_flight
        elif (elapsed := now - self._anchor) > 0:
            assert self._bucket is not None
            rate, pace = accepted / elapsed, self._bucket.rate
            if accepted < _RELIABLE_CALLS:  # a 429 is no reason to go faster
                rate = min(max(rate, pace / 2), pace) * _BACK_OFF
            self._bucket.set_rate(rate, now)
            if accepted < 5:  # the server allows no burst
                self._burst_seconds /= 2
            self._bucket.burst = max(1.0, rate * self._burst_seconds)
            self._bucket.set_level(-1, now)  # one call less, to stay clear of the edge
            if accepted > _RELIABLE_CALLS:  # the older half counts for half
                self._anchor, self._accepted = now - elapsed / 2, accepted / 2 - in_flight
                self._step = _PROBE_STEP
                if self._was_raised:
                    self._probe_seconds = min(_LONGEST_PROBE_SECONDS, self._probe_seconds * 2)
            self._was_raised = False
        self._probe_at = now + self._probe_seconds

    def refuse_late(self) -> None:
        """A call that was in flight when the quota was used up was not accepted."""
        self._accepted += 1

    def delay(self, now: float) -> float:
        """Seconds until the next call may start."""
        return self._bucket.delay(1, now) if self._bucket else 0.0

    def take(self, now: float) -> None:
        """A call starts."""
        if self._bucket:
            self._bucket.take(1, now)
        self._granted += 1
