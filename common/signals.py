"""SIGTERM and SIGINT, deferred in code that may stop at some places only."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from types import FrameType

from common.errors import StoppedError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class DeferredSignals:
    """The signal that asked the job to stop, if any."""

    def __init__(self) -> None:
        self._number: int | None = None

    @property
    def received(self) -> bool:
        """Whether a signal came."""
        return self._number is not None

    def check(self) -> None:
        """Raises a StoppedError if a signal came."""
        if self._number is not None:
            raise StoppedError(self._number)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Stores the signal; a second one ends the process."""
        del frame
        if self._number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._number = number


@contextlib.contextmanager
def deferring_signals() -> Iterator[DeferredSignals]:
    """Defers SIGTERM and SIGINT to the end of the block, or to its `check`.

    An exception of a handler is lost in compiled code, or becomes a SystemError; and an interrupted
    training step cannot be resumed.
    """
    signals = DeferredSignals()
    handlers = {number: signal.signal(number, signals.handle) for number in STOP_SIGNALS}
    try:
        yield signals
        signals.check()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent dies, whatever it is doing then.

    Ray's workers end by themselves, but not while a regular expression or a model computes.
    """
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
