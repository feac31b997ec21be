"""A call to the teacher, as the quota sees it, and its outcome."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from common.quota.protocol import Amount, Fault, Headers, Refusal, Totals


@dataclass(slots=True, eq=False)
class Call:
    """A call that waits or is in flight."""

    characters: float
    bound_cost: Callable[[], float]
    """Gives the most dollars that it may cost."""
    may_start: asyncio.Future[None]
    usd: float = 0.0
    """Those dollars when it was requested."""
    tokens: float = 0.0
    """The estimate when it was requested."""
    is_granted: bool = False
    starts_at: float = 0.0
    sent_at: float = 0.0
    started: Amount = (0.0, 0.0)
    """What the job had started then, including this call, according to the last lease."""


@dataclass(slots=True)
class Outcome:
    """The result of a call."""

    totals: Totals
    used_tokens: float
    headers: Headers | None = None
    is_throttled: bool = False
    retry_after_seconds: float | None = None
    refusal: Refusal | None = None
    fault: Fault | None = None
    rates: tuple[float, float] | None = None
    """See `Tally`."""
