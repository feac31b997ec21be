"""What a lane is: a way in which a session's requests travel to the teacher; see `lanes/`."""

import queue
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Thread

import pyarrow as pa

from common.errors import DistillError
from common.quota.protocol import Snapshot
from common.quota.quota import Quota
from common.records import Example
from common.run.run import Run
from common.teacher.replies import Reply


@dataclass(frozen=True)
class Work:
    """What a lane is given: `replies` are known, by key, and not to be asked for."""

    run: Run
    url: str
    examples: Sequence[Example]
    replies: Mapping[str, Reply]
    quota: Quota


class Lane(ABC):
    """A way in which a session's requests travel to the teacher.

    Every method but `close` may raise a DistillError if the lane itself has failed.

    Attributes:
        refusal_drain_seconds: how long calls in flight may take to end after a refusal; None: as
            long as a call may take.
    """

    refusal_drain_seconds: float | None = None

    def __init__(self) -> None:
        self._arrived: queue.Queue[pa.Table | BaseException | None] = queue.Queue()

    @abstractmethod
    def open(self) -> None:
        """Gets ready; no call starts yet."""

    @abstractmethod
    def start(self, work: Work) -> None:
        """Starts to label, and returns at once."""

    @abstractmethod
    def snapshot(self, may_start: bool) -> Snapshot | None:
        """The state of the quota, if it answers in time; no call starts unless it `may_start`."""

    @abstractmethod
    def stop(self, reason: DistillError) -> None:
        """Starts no more calls; those in flight go on to their end."""

    @abstractmethod
    def close(self) -> None:
        """Ends what `open` and `start` have started, however far they came; never raises."""

    def take(self, seconds: float) -> pa.Table | None:
        """The next finished rows; None after the last. Raises queue.Empty if none come in time."""
        arrived = self._arrived.get(timeout=seconds)
        if isinstance(arrived, BaseException):
            raise arrived
        return arrived

    def deliver(self, tables: Callable[[], Iterable[pa.Table]]) -> Thread:
        """Makes tables for `take` in a thread: signals and refusals reach the main one at once."""

        def work() -> None:
            try:
                for table in tables():
                    self._arrived.put(table)
                self._arrived.put(None)
            except BaseException as error:
                self._arrived.put(error)

        thread = Thread(target=work, daemon=True)
        thread.start()
        return thread
