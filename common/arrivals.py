"""Items that a thread produces, so that signals reach the main one at once."""

import queue
from collections.abc import Callable, Iterable
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Arrivals(Generic[T]):
    """The items of one iterable."""

    def __init__(self) -> None:
        self._queue: queue.Queue[T | BaseException | None] = queue.Queue()

    def produce(self, make: Callable[[], Iterable[T]]) -> Thread:
        """Starts a thread for the items that `make` gives."""

        def work() -> None:
            try:
                for item in make():
                    self._queue.put(item)
                self._queue.put(None)
            except BaseException as error:
                self._queue.put(error)

        thread = Thread(target=work, daemon=True)
        thread.start()
        return thread

    def take(self, seconds: float) -> T | None:
        """The next item, None after the last.

        Raises queue.Empty on a timeout, and what the iterable has raised.
        """
        arrived = self._queue.get(timeout=seconds)
        if isinstance(arrived, BaseException):
            raise arrived
        return arrived
