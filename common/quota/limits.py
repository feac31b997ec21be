"""Limits of requests and tokens: from the settings, from headers, or estimated from 429s."""

import math

_SAFETY = 0.998
"""The share of a configured limit that is used: the server's clock may differ."""
_JITTER_SECONDS = 0.02
"""Two calls may arrive this much closer together than they were sent."""
_FIRST_BURST_SECONDS, _BURST_SECONDS, _TRIAL_SECONDS = 0.25, 1.0, 3.0
"""The burst of a configured limit: at first, and after `_TRIAL_SECONDS` at its full rate."""
_SMOOTH_SECONDS, _AT_RATE, _MOST_SMOOTHINGS = 0.02, 0.9, 5
"""The burst after a 429; the share of the configured rate at which it counts as used."""
_PROBE_SECONDS, _SEARCH_STEP, _PROBE_STEP = 1.0, 0.4, 0.02
"""An estimated rate is raised by a step after `_PROBE_SECONDS` without a 429.

The step doubles with each raise, the time with each 429 that follows a raise.
"""
_RELIABLE_CALLS, _LONGEST_PROBE_SECONDS = 20, 30.0
"""The number of calls from which a measured rate is reliable."""
_SUSTAINED_SHARE, _BACK_OFF = 1 / 3, 0.8
"""The share of a first burst that lasts; the factor on a rate from too few calls."""


class Bucket:
    """A token bucket, stored as the time `empty_at` when it was or will be empty.

    `take` is immediate and may leave a debt, which `delay` waits off.
    """

    def __init__(self, rate: float, burst: float, first_burst: float, now: float) -> None:
        """`rate` is in units per second, the bursts are in units."""
        self.rate, self.burst = rate, burst
        self.empty_at = now - first_burst / rate

    def delay(self, amount: float, now: float) -> float:
        """Seconds until the bucket holds an amount, or is full."""
        return max(0.0, self.empty_at + min(amount, self.burst) / self.rate - now)

    def take(self, amount: float, now: float) -> None:
        """Takes an amount; the level may become negative."""
        self.empty_at = max(self.empty_at, now - self.burst / self.rate) + amount / self.rate

    def level(self, now: float) -> float:
        """The level; a debt is negative."""
        return (now - self.empty_at) * self.rate

    def set_level(self, level: float, now: float) -> None:
        """Sets the level."""
        self.empty_at = now - level / self.rate

    def set_rate(self, rate: float, now: float) -> None:
        """Sets the rate; the level stays."""
        level = self.level(now)
        self.rate = rate
        self.set_level(level, now)


class Limit:
    """The limit of requests or of tokens, from the settings and from headers."""

    def __init__(self, configured: float | None, reserve_calls: float, now: float) -> None:
        """`configured` is per minute; `reserve_calls` of typical size are left to the server."""
        self._reserve_calls = reserve_calls
        self._configured: Bucket | None = None
        self._server: Bucket | None = None
        self.server_limit: float | None = None
        """What headers say, of a minute or of another time."""
        self._told, self._smoothed = configured, 0
        self.granted = self._typical = self._variance = 0.0
        self.left = 0.0
        """What the last headers say is left, less what was taken since; no refill is assumed."""
        self._headers: tuple[float, float, float] = (0.0, 0.0, 60.0)
        if configured:
            rate = configured / 60 * _SAFETY
            burst = rate * _FIRST_BURST_SECONDS
            self._configured = Bucket(rate, burst, burst, now)

    @property
    def per_minute(self) -> float | None:
        """The lower of the known limits."""
        limits = (self._told, self.server_limit)
        return min((limit for limit in limits if limit is not None), default=None)

    def _buckets(self) -> list[Bucket]:
        """The configured limit counts unless the headers have one that is not higher."""
        configured = [self._configured] if self._configured else []
        if self._server is None:
            return configured
        assert self.server_limit is not None
        return [self._server, *(b for b in configured if b.rate * 61 < self.server_limit)]

    def delay(self, amount: float, now: float) -> float:
        """Seconds until every limit has room for an amount."""
        return max((bucket.delay(amount, now) for bucket in self._buckets()), default=0.0)

    def take(self, amount: float, now: float) -> None:
        """Takes an amount; the level may become negative."""
        self.granted += amount
        self._typical += (amount - self._typical) / 16 if self._typical else amount
        self._take(amount, now)
        is_tried = self._configured and self.granted > self._configured.rate * _TRIAL_SECONDS
        if self._configured and is_tried and not self._smoothed:
            self._configured.burst = self._configured.rate * _BURST_SECONDS

    def smooth(self, used: float, seconds: float) -> bool:
        """Gives up bursts, and a little of the rate, after a 429; whether that may help.

        `used` is what was accepted in the last `seconds`: if it is less, the limit is wrong.
        """
        if self._configured is None or self._server or self._smoothed >= _MOST_SMOOTHINGS:
            return False
        if used < _AT_RATE * self._configured.rate * seconds:
            return False
        self._smoothed += 1
        self._configured.burst = self._configured.rate * _SMOOTH_SECONDS
        self._configured.rate *= _SAFETY
        return True

    def give_back(self, amount: float, now: float) -> None:
        """Returns an amount that was taken and not used."""
        self.granted -= amount
        self._take(-amount, now)

    def _take(self, amount: float, now: float) -> None:
        self.left -= amount
        for bucket in (self._configured, self._server):
            if bucket:
                bucket.take(amount, now)

    def correct(self, amount: float, calls: int, now: float) -> None:
        """Counts what calls used beyond the estimates; headers include it already."""
        if self._configured:
            self._configured.take(amount, now)
        if calls:
            self._variance += (amount**2 / calls - self._variance) / 16

    def apply_headers(
        self,
        headers: tuple[float | None, float | None, float | None],
        amount_since: float,
        calls_since: float,
        age_seconds: float,
        is_new: bool,
        now: float,
    ) -> None:
        """Takes over the headers (limit, remaining, reset) of a call sent `age_seconds` ago.

        `amount_since` is what was sent or granted since, in `calls_since` calls. Headers that are
        not new can only lower the level.
        """
        limit, remaining, reset_seconds = headers
        if limit is None or remaining is None or limit < 1:
            return
        if is_new or remaining - amount_since < self.left:
            self.left = remaining - amount_since
        self._headers = limit, remaining, reset_seconds or 60.0
        rate = limit / 60
        if reset_seconds and remaining < limit:  # a limit per day refills more slowly
            rate = min(rate, (limit - remaining) / reset_seconds)
        if self._server is None:
            self._server = Bucket(rate, 1.0, 0.0, now)
        self.server_limit = limit
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

    def explain_wait(self, now: float) -> tuple[float, str]:
        """The seconds between two calls, or to the next, by the headers, and what these say."""
        if self._server is None:
            return 0.0, ""
        limit, remaining, reset_seconds = self._headers
        said = f"{remaining:,.0f} of {limit:,.0f} {{}} are left, and all in {reset_seconds:,.0f} s"
        amount = self._typical or 1.0
        wait = self._server.delay(amount, now)
        return max(wait, amount / self._server.rate) if wait else 0.0, said

    def explains(self, sent_at: float, now: float) -> bool:
        """Whether the headers explain the 429 of a call sent at this time: little was left."""
        if self._server is None:
            return False
        left = self._server.level(now) - self._server.rate * (now - sent_at)
        return left < 2 * self._typical + self._server.rate * _JITTER_SECONDS


class EstimatedRate:
    """A request rate estimated from 429s, see point 3 in `common.quota.quota`."""

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
        """Calls per minute; None before the first estimate."""
        return self._bucket.rate * 60 if self._bucket else None

    @property
    def is_active(self) -> bool:
        """Whether there is an estimate."""
        return self._bucket is not None

    def accept(self, calls: int, now: float) -> None:
        """Counts answered calls, and raises the rate if a probe is due."""
        self._accepted += calls
        if self._first_at is None:
            self._first_at = now
        if self._bucket and now >= self._probe_at:
            self._bucket.set_rate(self._bucket.rate * (1 + self._step), now)
            self._step = min(_SEARCH_STEP, self._step * 2)
            self._probe_at = now + self._probe_seconds
            self._was_raised = True

    def note_exhausted(self, in_flight: int, pause: float, now: float) -> None:
        """Updates the estimate when the server's quota is used up; calls in flight are accepted."""
        accepted = self._accepted + in_flight
        if accepted < 1:  # another client has used it up: no estimate is possible
            self._accepted, self._granted, self._first_at = -in_flight, 0.0, now + pause
            if self._anchor is not None:
                self._anchor = now + pause
        elif self._anchor is None:
            # A guess: the calls accepted so far include a burst.
            assert self._first_at is not None
            elapsed = max(now - self._first_at, 0.1)
            rate = max(accepted, self._granted) / elapsed
            rate *= min(1.0, _SUSTAINED_SHARE + elapsed / 60)
            self._bucket = Bucket(rate, 1, -1, now)
            self._anchor, self._accepted = now, -in_flight
        elif (elapsed := now - self._anchor) > 0:
            assert self._bucket is not None
            rate, pace = accepted / elapsed, self._bucket.rate
            if accepted < _RELIABLE_CALLS:  # never raise the rate after a 429
                rate = min(max(rate, pace / 2), pace) * _BACK_OFF
            self._bucket.set_rate(rate, now)
            if accepted < 5:  # the server allows no burst
                self._burst_seconds /= 2
            self._bucket.burst = max(1.0, rate * self._burst_seconds)
            self._bucket.set_level(-1, now)  # a margin of one call
            if accepted > _RELIABLE_CALLS:  # halve the weight of older calls
                self._anchor, self._accepted = now - elapsed / 2, accepted / 2 - in_flight
                self._step = _PROBE_STEP
                if self._was_raised:
                    self._probe_seconds = min(_LONGEST_PROBE_SECONDS, self._probe_seconds * 2)
            self._was_raised = False
        self._probe_at = now + self._probe_seconds

    def correct_refused(self) -> None:
        """A call in flight at `note_exhausted` was refused after all."""
        self._accepted += 1

    def delay(self, now: float) -> float:
        """Seconds until the next call may start."""
        return self._bucket.delay(1, now) if self._bucket else 0.0

    def take(self, now: float) -> None:
        """Counts a call that starts."""
        if self._bucket:
            self._bucket.take(1, now)
        self._granted += 1
