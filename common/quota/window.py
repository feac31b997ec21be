"""A sliding window: a limit on what starts in any so many seconds, as some servers count.

After a burst such a server refuses everything until the burst is that old, and a token bucket,
which refills at once, runs into one 429 after another. A window is learned from a 429 that finds
one full: what was accepted in the seconds before is what the limit allows for so long, and the time
that the server asks to wait is when the first of it drops out.
"""

from collections import deque

_LENGTHS = (5.0, 10.0, 15.0, 20.0, 30.0, 60.0)
"""The lengths in use, in seconds."""
_SHORTEST_WAIT, _SHORTEST_SHARE = 1.2, 0.15
"""A shorter wait, in seconds or as a share of the window, is that of a token bucket."""
_TOLERANCE, _AMOUNTS = 0.02, 2.0
"""How far, as a share and in amounts, a full window may be from its limit."""
_WAIT_TOLERANCE = 1.05
"""By how many seconds the time to wait may be off: most servers round it up."""
_SETTLED_SECONDS = 0.5
"""After that, the calls in flight at a 429 have ended, and the log says what was accepted."""
_CAUTION, _MARGIN_SECONDS = 0.998, 0.03
"""A factor on the limit after a 429 for a full window; how much longer the window is taken for."""
_SLACK = 0.01
"""The share by which a limit that nobody tells is overdrawn: a 429 rather than a rest unused."""
_MOST_STRIKES = 3
"""It is no window of ours if it refuses so often while it is not full."""


class Window:
    """The log of what has started, and a sliding window once one is learned."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        """The window's length, None until it is learned."""
        self._limit, self._is_exact = 0.0, False
        self._log: deque[list[float]] = deque()
        self._first_at: float | None = None
        self._full: tuple[float, float | None] | None = None
        self._refused_at = 0.0
        self._strikes = 0

    @property
    def is_known(self) -> bool:
        """Whether there is a window to keep to."""
        return self.seconds is not None

    @property
    def per_minute(self) -> float | None:
        """The limit per minute; None until it is learned."""
        return self._limit * 60 / self.seconds if self.seconds else None

    def start(self, amount: float, now: float) -> None:
        """Logs what has started, just before `now`."""
        if not amount:
            return
        if self._first_at is None:
            self._first_at = now
        self._log.append([now, amount])
        while self._log[0][0] < now - _LENGTHS[-1] - 1:
            self._log.popleft()

    def correct(self, amount: float) -> None:
        """Adds what calls used beyond their estimates."""
        if self._log:
            self._log[-1][1] += amount

    def refuse(self, amount: float, sent_at: float, wait_seconds: float | None, now: float) -> None:
        """A call was refused: it does not count, and a window may be full."""
        after = [entry for entry in self._log if entry[0] >= sent_at] or list(self._log)[-1:]
        for entry in after[:1]:
            entry[1] -= min(amount, entry[1])
        if self.seconds is None:
            self._full = self._full or (sent_at, wait_seconds)
            self._refused_at = max(self._refused_at, sent_at)
        elif self._count(sent_at - self.seconds, sent_at) < 0.9 * self._limit:
            self._strikes += 1
            if self._strikes >= _MOST_STRIKES:
                self.seconds = None
        elif self._is_exact or wait_seconds is None:
            self._limit *= _CAUTION

    def learn(self, per_minute: float | None, told: float | None, now: float) -> bool:
        """Looks at the last 429 once its time has settled; whether it has told of a window.

        `per_minute` is the known limit; `told` is what headers say, of a minute or of a window.
        """
        if self._full is None or now < self._full[0] + _SETTLED_SECONDS:
            return False
        sent_at, wait = self._full
        heard_at = None
        if wait is None:  # the server does not tell: wait until it answers again
            heard_at = self._find_first(self._refused_at, now - _SETTLED_SECONDS)
            if heard_at is None:
                return False
        self._full = None
        if self._strikes >= _MOST_STRIKES:
            return False
        for seconds in _LENGTHS:
            begin = sent_at - seconds
            used = self._count(begin, sent_at + _SETTLED_SECONDS)
            oldest = self._find_first(begin, sent_at) or sent_at
            if heard_at is not None:
                fits = self._refused_at < oldest + seconds < heard_at
            else:
                fits = self._fits(seconds, oldest, sent_at, wait)
            if not fits:
                continue
            limits = [per_minute * seconds / 60] if per_minute else []
            limits += [told] if told else []
            if not limits and oldest == self._first_at:
                limits = [used]
            for limit in limits:
                if abs(used - limit) <= _TOLERANCE * limit + _AMOUNTS < limit:
                    self._is_exact = bool(per_minute or told)
                    self.seconds, self._limit = seconds, limit
                    if not self._is_exact and wait is not None:
                        self._limit += limit * _SLACK + 1
                    return True
        return False

    def _find_first(self, after: float, until: float) -> float | None:
        """When the first call in a time was accepted; None if none was."""
        return next((at for at, n in self._log if after < at <= until and n > 0), None)

    def _fits(self, seconds: float, oldest: float, sent_at: float, wait: float | None) -> bool:
        """Whether the server's wait is when the oldest drops out of a window of that length."""
        if wait is None or wait < max(_SHORTEST_WAIT, _SHORTEST_SHARE * seconds):
            return False
        drops_out = oldest + seconds - sent_at
        return -_WAIT_TOLERANCE < drops_out - wait < 0.15 + _TOLERANCE * seconds

    def count(self, seconds: float, now: float) -> float:
        """What was accepted in the last seconds."""
        return self._count(now - seconds, now)

    def _count(self, begin: float, end: float) -> float:
        return sum(amount for at, amount in self._log if begin < at <= end)

    def delay(self, amount: float, granted: float, now: float) -> float:
        """Seconds until the window has room for an amount, besides what is `granted`."""
        if self.seconds is None:
            return 0.0
        length = self.seconds + _MARGIN_SECONDS
        missing = self._count(now - length, now) + granted + amount - self._limit
        for at, used in self._log:
            if missing <= 0:
                break
            if at > now - length:
                missing -= used
                if missing <= 0:
                    return at + length - now
        return 0.0 if missing <= 0 else length
