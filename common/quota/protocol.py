"""The messages between a job's workers and its quota, and the snapshot of its state."""

from dataclasses import dataclass, field
from enum import Enum

from common.errors import DistillError

Amount = tuple[float, float]
"""Calls, and their estimated tokens."""


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Estimates a call's tokens from the characters of its prompt."""

    per_character: float = 1 / 3.5
    completion: float = 0.0

    def guess(self, characters: float) -> float:
        """The estimated tokens of prompt and response together."""
        return characters * self.per_character + self.completion


@dataclass(slots=True)
class Headers:
    """A response's `x-ratelimit-*` headers; None where one is missing."""

    requests_limit: float | None = None
    requests_remaining: float | None = None
    requests_reset_seconds: float | None = None
    tokens_limit: float | None = None
    tokens_remaining: float | None = None
    tokens_reset_seconds: float | None = None


class Blame(Enum):
    """Who is at fault for a refused call, until other rows tell.

    ROW: this row. DOUBT: the row, or the job: its key, model or settings. JOB: the job, unless
    another row has an answer. CERTAIN: the job.
    """

    ROW = "row"
    DOUBT = "doubt"
    JOB = "job"
    CERTAIN = "certain"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that has failed for good; `error` is what the job would stop with.

    `alike` is equal for refusals of one and the same reason; so many in a row stop a job that has
    had answers, unless the row is to blame.
    """

    error: DistillError
    blame: Blame
    alike: str
    patience: int = 100


@dataclass(frozen=True, slots=True)
class Fault:
    """A call without an answer for a passing reason; `message` says which.

    Attributes:
        is_outage: the teacher is down or starts, rather than fails at this call.
        is_new: the row had no fault since the last answer to any row.
        is_of_row: other rows were answered after the row's first fault.
    """

    message: str
    is_outage: bool
    is_new: bool = True
    is_of_row: bool = False


@dataclass(slots=True)
class Totals:
    """Sums over calls; `answered` and `failed` count replies that end a sample."""

    calls: int = 0
    retries: int = 0
    answered: int = 0
    failed: int = 0
    throttled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0
    call_seconds: float = 0.0

    def add(self, other: "Totals") -> None:
        """Adds other sums."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class Tally:
    """A worker's report to the quota. Sums are since its last tally."""

    waiting: list[tuple[float, float]] = field(default_factory=list)
    """For each call that requests a start, in order: estimated tokens, worst-case dollars."""
    demand: int = 0
    """The number of calls that wait, including those that are not in `waiting`."""
    in_flight: int = 0
    totals: Totals = field(default_factory=Totals)
    started: Amount = (0.0, 0.0)
    granted: Amount = (0.0, 0.0)
    """Granted and not started yet."""
    usage: tuple[int, float, int, int] = (0, 0.0, 0, 0)
    """Of answers with usage: their number, characters, prompt and completion tokens."""
    token_correction: float = 0.0
    """Tokens used beyond the estimates; may be negative."""
    released_usd: float = 0.0
    """Dollars that were reserved for calls that have ended."""
    returned: tuple[int, float, float] = (0, 0.0, 0.0)
    """Unused grants: calls, tokens, dollars."""
    headers: tuple[Headers, Amount, float] | None = None
    """The latest headers, what had started with their call, the seconds since it was sent."""
    throttles: list[tuple[float, float | None]] = field(default_factory=list)
    """For each 429: the seconds since its call was sent, and its Retry-After in seconds."""
    resting: tuple[int, float, str] = (0, 0.0, "")
    """The calls that wait before a retry: their number, the longest wait in seconds, its reason."""
    refusals: list[Refusal] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    """Those since the worker's last answer."""
    adaptations: frozenset[str] = frozenset()
    """What calls have learned about the teacher's requests, see `common.teacher.dialect`."""
    rates: tuple[float, float] | None = None
    """The most dollars that a token of a prompt and of a completion may cost, by what replies say;
    None if they say nothing."""
    failure: DistillError | None = None
    """The error that stops the job, if any."""
    storage_error: str | None = None


@dataclass(slots=True)
class Lease:
    """What a worker may do until its next tally, at the latest after `renew_seconds`."""

    slots: int
    delays: list[float] | None
    """Seconds until each of the first `waiting` calls may start; None: only slots limit them."""
    renew_seconds: float
    pause_seconds: float = 0.0
    failure: DistillError | None = None
    """If set, no call starts any more."""
    started: Amount = (0.0, 0.0)
    """By all workers, according to their last tallies."""
    estimate: TokenEstimate | None = None
    """From the usage of all workers' calls."""
    adaptations: frozenset[str] = frozenset()
    """Those of all workers."""
    rates: tuple[float, float] | None = None
    """Those of all workers, see `Tally`."""
    answered: int = 0
    """Answers to all workers."""
    is_outage: bool = False


@dataclass
class Snapshot:
    """The state of a job."""

    totals: Totals
    workers: int
    """Those that have sent a tally lately."""
    in_flight: int
    slots: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    pause_seconds: float
    failure: DistillError | None
    storage_error: str | None
    active_seconds: float
    """From the first tally to the last answer."""
    lost_calls: int
    """Calls of crashed workers, with unknown results."""
    lost_workers: int
    adaptations: frozenset[str]
    resting: tuple[int, float, str]
    """See `Tally`."""
    outage: str
    """Why no call is answered, and for how long; empty without an outage."""
    refusal: DistillError | None
    """What the job ends with if no row is answered."""
    quota_wait: str = ""
    """For how long the server's headers keep calls waiting, and what they say; mostly empty."""
    note: str = ""
    """More to show of a lane's progress."""


def add(one: Amount, other: Amount) -> Amount:
    """The sum."""
    return one[0] + other[0], one[1] + other[1]


def min_rates(
    one: tuple[float, float] | None, other: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The lower bounds of two, see `Tally.rates`."""
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), min(one[1], other[1])
