"""What the workers of a job and its quota tell each other, and what people are told of it."""

from dataclasses import dataclass, field

from common.errors import DistillError

Amount = tuple[float, float]
"""Calls, and their tokens as estimated."""


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """How many tokens a call will use, guessed by the characters of its prompt."""

    per_character: float = 1 / 3.5
    completion: float = 0.0

    def guess(self, characters: float) -> float:
        """The tokens of prompt and response."""
        return characters * self.per_character + self.completion


@dataclass(slots=True)
class Headers:
    """What a response's `x-ratelimit-*` headers say; None where they say nothing."""

    requests_limit: float | None = None
    requests_remaining: float | None = None
    requests_reset_seconds: float | None = None
    tokens_limit: float | None = None
    tokens_remaining: float | None = None
    tokens_reset_seconds: float | None = None


@dataclass(slots=True)
class Totals:
    """What was done, added up."""

    calls: int = 0
    retries: int = 0
    answered: int = 0
    throttled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    call_seconds: float = 0.0

    def add(self, other: "Totals") -> None:
        """Adds another's."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class Tally:
    """What a worker tells. What happened is since its last tally."""

    waiting: list[tuple[float, float]] = field(default_factory=list)
    """Of each call that wants to start, in order: estimated tokens, dollars in the worst case."""
    demand: int = 0
    """Calls that want to start, also those that are not in `waiting`."""
    in_flight: int = 0
    totals: Totals = field(default_factory=Totals)
    started: Amount = (0.0, 0.0)
    granted: Amount = (0.0, 0.0)
    """What is granted and has not started yet."""
    usage: tuple[int, float, int, int] = (0, 0.0, 0, 0)
    """Answers that told their usage: their number, characters, prompt and completion tokens."""
    token_correction: float = 0.0
    """Tokens used beyond the estimates; negative where less was used."""
    released_usd: float = 0.0
    """What was reserved for the calls that have ended."""
    returned: tuple[int, float, float] = (0, 0.0, 0.0)
    """Grants that were not used: calls, tokens, dollars."""
    headers: tuple[Headers, Amount, float] | None = None
    """The latest call's that had any, what had started with it, the seconds since it was sent."""
    throttles: list[tuple[float, float | None]] = field(default_factory=list)
    """Of each 429: the seconds since its call was sent, and its Retry-After in seconds."""
    failure: DistillError | None = None
    """What should stop the job."""
    storage_error: str | None = None
    """What the worker is waiting for, as the storage."""


@dataclass(slots=True)
class Lease:
    """What a worker may do until it tells again, at the latest after `renew_seconds`."""

    slots: int
    delays: list[float] | None
    """For the first calls of `waiting`: they may start so many seconds from now.

    None: any call may start while there are slots.
    """
    renew_seconds: float
    pause_seconds: float = 0.0
    failure: DistillError | None = None
    """Nothing starts any more."""
    started: Amount = (0.0, 0.0)
    """By all workers, as far as the quota has heard."""
    estimate: TokenEstimate | None = None
    """Learned from what all workers' calls used."""


@dataclass
class Snapshot:
    """The state of a job, for people."""

    totals: Totals
    workers: int
    """Those that were heard of lately."""
    in_flight: int
    slots: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    pause_seconds: float
    failure: DistillError | None
    storage_error: str | None
    active_seconds: float
    """From the first worker's first tally to the last answer."""
    lost_calls: int
    """Those of dead workers: nobody knows what became of them."""
    lost_workers: int


def add(one: Amount, other: Amount) -> Amount:
    """The sum."""
    return one[0] + other[0], one[1] + other[1]
