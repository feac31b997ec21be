"""Signals for code that must not be interrupted anywhere."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from common.errors import StoppedError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class NotedSignals:
    """Whether a signal has asked the job to stop."""

    def __init__(self) -> None:
        self._number: int | None = None

    @property
    def received(self) -> bool:
        """Whether one came."""
        return self._number is not None

    def check(self) -> None:
        """Raises a StoppedError if one came."""
        if self._number is not None:
            raise StoppedError(self._number)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler. A second signal ends the process."""
        del frame
        if self._number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._number = number


@contextlib.contextmanager
def noting_signals() -> Iterator[NotedSignals]:
    """SIGTERM and SIGINT are noted meanwhile, and raised at the end.

    What a handler raises within compiled code becomes a SystemError, or is lost; and a training
    step that is left in its middle cannot be gone on with.
    """
    noted = NotedSignals()
    handlers = {number: signal.signal(number, noted.note) for number in STOP_SIGNALS}
    try:
        yield noted
        noted.check()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
