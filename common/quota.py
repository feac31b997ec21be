"""Paces calls: requests and tokens a minute, and the pauses that a server asks for."""

import asyncio
import time
from collections.abc import Callable

_BURST_SECONDS = 1.0
"""How much of the quota may be used at once after a quiet time."""


class _Bucket:
    """A leaky bucket that may go into debt: taking is immediate, waiting comes before the next."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float]) -> None:
        self._rate = per_minute / 60 if per_minute else None
        self._clock = clock
        self._ready_at = float("-inf")

    def wait_seconds(self) -> float:
        return max(0.0, self._ready_at - self._clock())

    def take(self, amount: float) -> None:
        if self._rate is not None:
            start = max(self._ready_at, self._clock() - _BURST_SECONDS)
            self._ready_at = start + amount / self._rate


class Quota:
    """The limits of one worker. `share` of the job's limits is its own."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Limits are those of the whole job; None: no limit known."""
        self._clock = clock
        self._requests = _Bucket(requests_per_minute and requests_per_minute * share, clock)
        self._tokens = _Bucket(tokens_per_minute and tokens_per_minute * share, clock)
        self._paused_until = float("-inf")

    def try_acquire(self, tokens: float) -> float:
        """Takes one request and `tokens`, and returns 0; or returns the seconds to wait."""
        wait = max(
            self._requests.wait_seconds(),
            self._tokens.wait_seconds(),
            self._paused_until - self._clock(),
        )
        if wait > 0:
            return wait
        self._requests.take(1)
        self._tokens.take(tokens)
        return 0.0

    async def acquire(self, tokens: float) -> None:
        """Waits until one request of about `tokens` may be sent."""
        while (wait := self.try_acquire(tokens)) > 0:
            await asyncio.sleep(wait)

    def settle(self, estimated_tokens: float, used_tokens: float) -> None:
        """Corrects the token count once the server has told it."""
        self._tokens.take(used_tokens - estimated_tokens)

    def pause(self, seconds: float) -> None:
        """Nothing is sent for `seconds`: the server said so."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)
