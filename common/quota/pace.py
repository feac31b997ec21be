"""The pace of calls: all that is known of the server's limits of requests and of tokens."""

from common.quota.limits import EstimatedRate, Limit
from common.quota.protocol import Amount, Headers, add
from common.quota.window import Window

_SMOOTHING_SECONDS = 10.0
"""The time over which calls are compared with a configured limit after a 429."""


class Pace:
    """When a call may start. A learned window replaces the other limits of its kind."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """A limit of None is unknown."""
        self._requests = Limit(requests_per_minute, reserve_calls=0.5, now=0.0)
        self._tokens = Limit(tokens_per_minute, reserve_calls=1.0, now=0.0)
        self._limits = self._requests, self._tokens
        self._windows = Window(), Window()
        self._estimated_rate = EstimatedRate()
        self._started: Amount = (0.0, 0.0)

    @property
    def is_unlimited(self) -> bool:
        """Whether no limit is known."""
        return not (
            self.has_window
            or self._estimated_rate.is_active
            or any(limit.per_minute is not None for limit in self._limits)
        )

    @property
    def has_window(self) -> bool:
        """Whether a sliding window is learned."""
        return any(window.is_known for window in self._windows)

    @property
    def started(self) -> Amount:
        """What all workers have started, according to their tallies."""
        return self._started

    @property
    def requests_per_minute(self) -> float | None:
        """The lowest known limit."""
        limits = (
            self._requests.per_minute,
            self._windows[0].per_minute,
            self._estimated_rate.per_minute,
        )
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def tokens_per_minute(self) -> float | None:
        """The lowest known limit."""
        limits = self._tokens.per_minute, self._windows[1].per_minute
        return min((limit for limit in limits if limit is not None), default=None)

    def delay(self, tokens: float, granted: Amount, now: float) -> float:
        """Seconds until all limits have room for a call, besides those that are `granted`."""
        waits = [0.0 if self.has_window else self._estimated_rate.delay(now)]
        kinds = zip(self._windows, self._limits, (1.0, tokens), granted, strict=True)
        for window, limit, amount, given in kinds:
            if not window.is_known:
                waits.append(limit.delay(amount, now))
            elif limit.left < 2 * amount:
                waits.append(window.delay(amount, given, now))
        return max(waits)

    def explain_wait(self, now: float) -> tuple[float, str]:
        """How many seconds the server's headers keep a call waiting, and what they say."""
        waits = [limit.explain_wait(now) for limit in self._limits]
        found = zip(waits, ("requests", "tokens"), strict=True)
        return max((seconds, said.format(kind)) for (seconds, said), kind in found)

    def take(self, tokens: float, now: float) -> None:
        """Grants a call."""
        self._requests.take(1, now)
        self._tokens.take(tokens, now)
        self._estimated_rate.take(now)

    def give_back(self, calls: float, tokens: float, now: float) -> None:
        """Returns granted calls that were not used."""
        self._requests.give_back(calls, now)
        self._tokens.give_back(tokens, now)

    def count(self, started: Amount, calls: int, token_correction: float, now: float) -> None:
        """Counts what has started, and the calls that the server has accepted.

        `token_correction` is what they used beyond their estimates.
        """
        self._started = add(self._started, started)
        for window, amount in zip(self._windows, started, strict=True):
            window.start(amount, now)
        self._windows[1].correct(token_correction)
        self._tokens.correct(token_correction, calls, now)
        self._estimated_rate.accept(calls, now)

    def apply_headers(
        self, h: Headers, since: Amount, age: float, is_new: bool, now: float
    ) -> None:
        """Takes over headers; `since` is what was sent or granted after their call."""
        calls_since, tokens_since = since
        requests = h.requests_limit, h.requests_remaining, h.requests_reset_seconds
        tokens = h.tokens_limit, h.tokens_remaining, h.tokens_reset_seconds
        self._requests.apply_headers(requests, calls_since, calls_since, age, is_new, now)
        self._tokens.apply_headers(tokens, tokens_since, calls_since, age, is_new, now)

    def refuse(self, tokens: float, sent_at: float, wait: float | None, now: float) -> bool:
        """A call got a 429: it does not count. Whether headers explain it, as little was left."""
        for window, amount in zip(self._windows, (1.0, tokens), strict=True):
            window.refuse(amount, sent_at, wait, now)
        return any(limit.explains(sent_at, now) for limit in self._limits)

    def correct_refused(self) -> None:
        """See `EstimatedRate`."""
        self._estimated_rate.correct_refused()

    def smooth(self, now: float) -> bool:
        """See `Limit`."""
        used = [window.count(_SMOOTHING_SECONDS, now) for window in self._windows]
        pairs = zip(self._limits, used, strict=True)
        smoothed = [limit.smooth(amount, _SMOOTHING_SECONDS) for limit, amount in pairs]
        return any(smoothed)

    def note_exhausted(self, in_flight: int, pause: float, now: float) -> None:
        """See `EstimatedRate`."""
        self._estimated_rate.note_exhausted(in_flight, pause, now)

    def learn(self, now: float) -> None:
        """Looks whether the last 429 tells of a window: one tells of one, rather of a known one."""
        pairs = zip(self._windows, self._limits, strict=True)
        for window, limit in sorted(pairs, key=lambda pair: pair[1].per_minute is None):
            if not self.has_window and window.learn(limit.per_minute, limit.server_limit, now):
                self._estimated_rate = EstimatedRate()
