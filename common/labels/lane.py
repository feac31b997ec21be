"""What a lane is; `lanes/` has them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Thread

import pyarrow as pa

from common.arrivals import Arrivals
from common.data.examples import Examples
from common.errors import DistillError
from common.labels.parts import Parts
from common.quota.protocol import Snapshot
from common.quota.quota import Quota
from common.run.run import Run
from common.teacher.replies import Reply


@dataclass(frozen=True)
class Work:
    """A lane's input.

    Attributes:
        replies: by key, those that are known and need no calls.
        parts: where a lane may write what is finished, rather than return it.
    """

    run: Run
    url: str
    examples: Examples
    replies: Mapping[str, Reply]
    quota: Quota
    spent_usd: float = 0.0
    parts: Parts | None = None


class Lane(ABC):
    """How a session's requests reach the teacher.

    Every method except `close` may raise a DistillError if the lane has failed.

    Attributes:
        refusal_drain_seconds: how long calls in flight may take to end after a refusal; None: as
            long as a call may take.
        loses_calls: whether a crash loses the calls in flight.
    """

    loses_calls = True
    refusal_drain_seconds: float | None = None

    def __init__(self) -> None:
        self._arrived: Arrivals[pa.Table] = Arrivals()

    @abstractmethod
    def open(self) -> None:
        """Prepares without starting calls."""

    @abstractmethod
    def start(self, work: Work) -> None:
        """Starts labelling in the background."""

    @abstractmethod
    def snapshot(self, may_start: bool) -> Snapshot | None:
        """The state of the quota, or None on a timeout; no call starts unless `may_start`."""

    @abstractmethod
    def stop(self, reason: DistillError) -> None:
        """Starts no more calls; those in flight complete."""

    @abstractmethod
    def close(self) -> None:
        """Ends what `open` and `start` have started, even if they failed; never raises."""

    def take(self, seconds: float) -> pa.Table | None:
        """The next finished rows that are in no part, None after the last.

        Raises queue.Empty on a timeout.
        """
        return self._arrived.take(seconds)

    def deliver(self, tables: Callable[[], Iterable[pa.Table]]) -> Thread:
        """Produces tables for `take` in a thread."""
        return self._arrived.produce(tables)
