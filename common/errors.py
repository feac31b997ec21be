"""The errors that a job raises, and their exit codes.

DistillError               1    a retry may help
├── SettingsError          2    a wrong or missing setting
├── InputError             3    missing or bad input: data, labels, a model, storage
├── TeacherRefusedError    4    the teacher refuses every call: key, permission, model, credit
├── CostCapError           5    label.max_cost_usd is reached
├── RetentionError         6    the student keeps less than evaluate.min_retention
└── StorageError           1    the disk or the object store fails

StoppedError             143    SIGTERM (130: Ctrl-C); a BaseException, as KeyboardInterrupt is

A message is one line: what is wrong, the value, the place, and the fix.
"""

import reprlib

_LONGEST = 300
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxlong = _SHOWN.maxother = 120


class DistillError(Exception):
    """The root of the tree."""

    exit_code = 1


class SettingsError(DistillError):
    """A setting is unknown, missing, of the wrong type or out of range."""

    exit_code = 2


class InputError(DistillError):
    """An input is missing, unreadable, or not what the run was started with."""

    exit_code = 3


class TeacherRefusedError(DistillError):
    """The teacher refuses every call, and a retry does not help."""

    exit_code = 4


class CostCapError(DistillError):
    """The next call could cost more than `label.max_cost_usd` leaves."""

    exit_code = 5


class RetentionError(DistillError):
    """The distilled student keeps less of the teacher's score than `evaluate.min_retention`."""

    exit_code = 6


class StorageError(DistillError):
    """The disk or the object store fails; a retry may help if `is_transient`."""

    def __init__(self, message: str, is_transient: bool = True) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class StoppedError(BaseException):
    """A signal asks the job to stop; no `except Exception` of a library catches it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}; run the same command to resume")
        self.exit_code = 128 + signal_number


_MEMORY_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "Unable to allocate",
    "ALLOC_FAILED",
    "can't start new thread",  # which has no room for its stack
)


def is_memory_error(error: Exception) -> bool:
    """Whether an error says that memory is used up: torch and Python raise RuntimeErrors, too."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _MEMORY_SIGNS)


def explain_memory(error: Exception, advice: str) -> SettingsError:
    """An error of `is_memory_error` as one that no job retries."""
    # Torch's begin with a place in C++, and Ray puts a traceback behind its own.
    sentences = " ".join(str(error).partition("traceback:")[0].split()).rstrip(".").split(". ")
    telling = (text for text in sentences if any(sign in text for sign in _MEMORY_SIGNS))
    reason = next(telling, sentences[0]) or type(error).__name__
    return SettingsError(f"the memory does not suffice ({reason}); {advice}")


def explain_error(what: str, error: Exception, advice: str) -> DistillError:
    """An error of any library as one of ours: `what` has failed. `advice` is for used-up memory."""
    if isinstance(error, DistillError):
        return error
    if is_memory_error(error):
        return explain_memory(error, advice)
    reason = (str(error).splitlines() or [""])[0]
    return DistillError(f"{what} failed ({type(error).__name__}: {reason}); run again")


def show(value: object) -> str:
    """A value of any size and depth as Python writes it, but for its middle."""
    return _SHOWN.repr(value)


def shorten(reason: object) -> str:
    """What a library says as one line without control characters, at most 300 characters."""
    line = " ".join(str(reason)[: 10 * _LONGEST].split())
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
