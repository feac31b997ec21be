"""An exclusive lock on a run: one job at a time works on it.

A job that starts makes the file lock/1.json, which of several jobs only one can, and
changes it every two seconds. A job that finds such a file watches it. If it changes, its owner is
at work, and the second job stops. If not, its owner was killed, and the second job makes the file
with the next number. The highest number counts: an owner that sees a higher one has lost the run.

No clocks of two machines are compared, and nothing is replaced under a condition, which object
stores do not know or get wrong; they make an object only if it is absent, as a disk does.
"""

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import DistillError
from common.run.storage import RunStorage

FOLDER = "lock"
_BEAT_SECONDS = 2.0
_STALE_SECONDS = 8.0
"""How long a lock without a change is taken for alive."""
_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 600.0
"""How long an owner goes on whose lock the storage does not take."""

_FILE = re.compile(rf"{FOLDER}/(\d+)\.json")

log = logging.getLogger(__name__)


class RunLock:
    """A job's hold of a run.

    Attributes:
        storage_error: what is wrong with the storage at the moment, if anything.
    """

    def __init__(
        self,
        storage: RunStorage,
        job: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Takes nothing yet. `clock` and `sleep` count seconds."""
        self.storage_error: str | None = None
        self._storage, self._clock, self._sleep = storage, clock, sleep
        self._owner: dict[str, Any] = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _name_machine(),
            "job": job,
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "beat": 0,
        }
        self._number = 0
        self._refreshed = clock()
        self._taken: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="run lock", daemon=True)

    def acquire(self, wait_seconds: float = 0) -> None:
        """Takes the run, after a dead owner if need be, and after one at work if it ends in time.

        Raises:
            DistillError: another job is at work on it.
        """
        watched: tuple[int, bytes] | None = None
        since, is_at_work, deadline = 0.0, False, self._clock() + wait_seconds
        while True:
            found = number, content = self._find_highest()
            if number == 0:
                if self._take(1):
                    return
            elif watched is None:
                watched, since = found, self._clock()
                log.info("%s; is it still at work? A moment …", self._describe(content))
            elif found != watched and self._clock() < deadline:
                if not is_at_work:
                    log.info("it is; waiting for its end, at most %g s", wait_seconds)
                watched, since, is_at_work = found, self._clock(), True
            elif found != watched:
                raise DistillError(
                    f"{self._describe(content)} and is at work; wait for its end, or choose "
                    "another DISTILL_RUN"
                )
            elif self._clock() - since >= _time_to_watch(content) and self._take(number + 1):
                log.info("it is not; going on in its place")
                self._keep_counts(below=number + 1)
                self._remove(below=number + 1)
                return
            self._sleep(_LOOK_SECONDS)

    def start(self) -> None:
        """Begins to show, in a thread, that this job is at work."""
        self._thread.start()

    def beat(self) -> None:
        """Shows once that this job is at work, and sees whether the run is still its own."""
        started = self._clock()
        try:
            number, content = self._find_highest()
            if number != self._number or not self._is_own(content):
                self._taken = (
                    f"{self._describe(content)}, which this job held: it stood still too long"
                    if number
                    else f"{self._storage.url}/{FOLDER}: this job's lock was removed"
                )
                return
            self._owner["beat"] += 1
            self._storage.write_bytes(_name_file(number), self._make_content(), attempts=1)
            self._refreshed, self.storage_error = started, None
        except Exception as error:  # the thread must go on
            self.storage_error = str(error)

    def check(self) -> None:
        """Raises a DistillError if the job must stop, for the run is no longer its own."""
        if self._taken:
            raise DistillError(f"{self._taken}; what was paid for is kept, run again later")
        silent = self._clock() - self._refreshed
        if silent > _PATIENCE_SECONDS:
            raise DistillError(
                f"the run's lock could not be refreshed for {silent:.0f} s: "
                f"{self.storage_error or 'the storage does not answer'}"
            )

    @property
    def is_held(self) -> bool:
        """Whether no other job can have taken the run. While not, no new call should be paid."""
        silent = self._clock() - self._refreshed
        return self._taken is None and silent < _STALE_SECONDS - _BEAT_SECONDS

    def release(self) -> None:
        """Gives the run back, if it was taken; never raises for the storage's sake."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_STALE_SECONDS)
        try:
            number, content = self._find_highest() if self._number else (0, b"")
            if number and number == self._number and self._is_own(content):
                self._remove(below=number + 1)
        except DistillError as error:
            log.warning("the run's lock stays, the next job will wait for it a moment: %s", error)

    def _beat_on(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS) and not self._taken:
            self.beat()

    def _find_highest(self) -> tuple[int, bytes]:
        """The number and the content of the lock that counts; 0 where there is none."""
        number = max(self._list_numbers(), default=0)
        try:
            return number, self._storage.read_bytes(_name_file(number)) if number else b""
        except FileNotFoundError:  # removed meanwhile
            return 0, b""

    def _list_numbers(self) -> list[int]:
        matches = (_FILE.fullmatch(name) for name in self._storage.list_files(FOLDER))
        return [int(match[1]) for match in matches if match]

    def _take(self, number: int) -> bool:
        """Makes the file with that number; whether it is the highest, and no other job's."""
        self._refreshed = self._clock()
        self._number = number  # before the file is there: a signal may come in between
        if self._storage.create_bytes(_name_file(number), self._make_content()):
            highest, content = self._find_highest()
            if highest == number and self._is_own(content):
                return True
            # Another job took a dead owner's place, and removed that one's file, while we looked.
            self._storage.remove(_name_file(number))
        self._number = 0
        return False

    def _remove(self, below: int) -> None:
        self._storage.remove(*(_name_file(n) for n in self._list_numbers() if n < below))

    def _keep_counts(self, below: int) -> None:
        """Writes what locks of version 0.1 say of calls in flight where sessions look for it."""
        for name in (_name_file(n) for n in self._list_numbers() if n < below):
            with suppress(FileNotFoundError):
                owner = _read_owner(self._storage.read_bytes(name))
                if owner.get("in_flight") or owner.get("lost"):
                    kept = f"journal/in-flight-{owner.get('owner')}.json"
                    self._storage.write_json(kept, owner)

    def _make_content(self) -> bytes:
        return json.dumps(self._owner, indent=2).encode()

    def _is_own(self, content: bytes) -> bool:
        return bool(_read_owner(content).get("owner") == self._owner["owner"])

    def _describe(self, content: bytes) -> str:
        owner = _read_owner(content)
        job, pid, host, since = (owner.get(k, "?") for k in ("job", "pid", "host", "started_at"))
        return (
            f"{self._storage.url} is held since {since} by the {job} job of process {pid} on {host}"
        )


@contextmanager
def hold_run(storage: RunStorage, job: str, wait_seconds: float = 0) -> Iterator[RunLock]:
    """Holds a run while the block runs; leaves no folder behind that was made for the lock only.

    If another job holds it, waits so long for that one's end.

    Raises:
        DistillError: another job is at work on it.
    """
    lock = RunLock(storage, job)
    with storage.removing_empty_folder(FOLDER):
        try:
            lock.acquire(wait_seconds)
            lock.start()
            yield lock
        finally:
            lock.release()


def is_locked(storage: RunStorage) -> bool:
    """Whether any job holds the run, or left its lock behind."""
    return bool(storage.list_files(FOLDER))


def wait_for_release(storage: RunStorage, job: str) -> None:
    """Waits `storage.wait_seconds` for the end of the job that holds the run, if one does.

    Raises:
        DistillError: it is still at work.
    """
    if storage.wait_seconds and is_locked(storage):
        with hold_run(storage, job, storage.wait_seconds):
            pass


def _name_file(number: int) -> str:
    return f"{FOLDER}/{number}.json"


def _read_owner(content: bytes) -> dict[str, Any]:
    """What a lock says; nothing where it says nothing that can be read."""
    with suppress(ValueError):
        owner = json.loads(content)
        if isinstance(owner, dict):
            return owner
    return {}


def _time_to_watch(content: bytes) -> float:
    """How long a lock must stand still, in seconds, until its owner is taken for dead."""
    owner = _read_owner(content)
    if not owner.get("machine") or owner["machine"] != _name_machine():
        return _STALE_SECONDS
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return _BEAT_SECONDS  # what its workers still have in hand may be on its way to the journal
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        pass
    return _STALE_SECONDS


def _name_machine() -> str:
    """What tells this kernel and its process numbers from others; empty where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
