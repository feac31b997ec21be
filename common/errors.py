"""What can go wrong, and the exit code that says so.

DistillError               1    may be retried
├── SettingsError          2    a wrong or missing setting
├── InputError             3    missing or bad input: data, labels, a model, storage
├── TeacherRefusedError    4    the teacher refuses for good: key, permission, model, credit
├── CostCapError           5    label.max_cost_usd is reached
└── StorageError           1    the disk or the object store fails

StoppedError             143    SIGTERM (130: Ctrl-C); outside the tree, as KeyboardInterrupt is

A message is one line, and says what was wrong, the value, where it stands, and the fix.
"""


class DistillError(Exception):
    """The root of the tree."""

    exit_code = 1


class SettingsError(DistillError):
    """A setting is unknown, missing, of the wrong type or out of range."""

    exit_code = 2


class InputError(DistillError):
    """What a job reads is missing, unreadable, or not what the run was started with."""

    exit_code = 3


class TeacherRefusedError(DistillError):
    """The teacher refuses every call for a reason that no retry mends."""

    exit_code = 4


class CostCapError(DistillError):
    """The next call could cost more than `label.max_cost_usd` leaves."""

    exit_code = 5


class StorageError(DistillError):
    """The disk or the object store fails. `is_passing` is whether trying again may help."""

    def __init__(self, message: str, is_passing: bool = True) -> None:
        """`message` is one line, with the place, the reason and the fix."""
        super().__init__(message)
        self.is_passing = is_passing


class StoppedError(BaseException):
    """A signal asked the job to stop. No `except Exception` of a library may hold it up."""

    def __init__(self, signal_number: int) -> None:
        """`signal_number` as the operating system counts (2 SIGINT, 15 SIGTERM)."""
        super().__init__(f"stopped by signal {signal_number}; run the same command to go on")
        self.exit_code = 128 + signal_number
