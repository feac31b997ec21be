"""An exclusive lock on a run: one job at a time may write to it.

A job creates lock/1.json, which only one job can, and rewrites it every two seconds as a heartbeat.
A second job watches the file. If it changes, its owner is at work, and the second job stops. If
not, its owner has crashed, and the second job creates the file with the next number. The highest
number is the lock: an owner that sees a higher one has lost the run.

The clocks of two machines are never compared. Files are only created if absent, which disks and
object stores support, and never replaced conditionally, which some object stores do not.
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
from common.run.stores import WatchedFolder

FOLDER = "lock"
_HEARTBEAT_SECONDS = 2.0
_STALE_SECONDS = 8.0
"""A lock that has not changed for this long belongs to a crashed job."""
_POLL_SECONDS = 0.5
_REFRESH_TIMEOUT_SECONDS = 600.0
"""An owner that cannot refresh its lock for this long stops."""
_FILE = re.compile(rf"{FOLDER}/(\d+)\.json")

log = logging.getLogger(__name__)


class RunLock:
    """A job's lock on a run; `storage_error` says why the last heartbeat failed, if it did."""

    def __init__(
        self,
        storage: RunStorage,
        job: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
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
        self._lost_because: DistillError | None = None
        self._folder: WatchedFolder | None = None
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="run lock", daemon=True)

    def acquire(self, wait_seconds: float = 0) -> None:
        """Locks the run, once its owner has crashed, or has ended within `wait_seconds`.

        Raises:
            DistillError: another job is at work on it.
        """
        watched: tuple[int, bytes] | None = None
        since, is_at_work, deadline = 0.0, False, self._clock() + wait_seconds
        while True:
            found = number, content = self._find_highest()
            if number == 0:
                if self._take(1):
                    break
            elif watched is None:
                watched, since = found, self._clock()
                log.info("%s; checking whether it is still at work", self._describe(content))
            elif found != watched and self._clock() < deadline:
                if not is_at_work:
                    log.info("it is at work; waiting for it, at most %g s", wait_seconds)
                watched, since, is_at_work = found, self._clock(), True
            elif found != watched:
                raise DistillError(
                    f"{self._describe(content)} and is at work; wait for its end, or choose "
                    "another DISTILL_RUN"
                )
            elif self._clock() - since >= _time_to_watch(content) and self._take(number + 1):
                log.info("it has crashed; taking over the run")
                self._keep_counts(below=number + 1)
                self._remove(below=number + 1)
                break
            self._sleep(_POLL_SECONDS)
        self._folder = self._storage.watch()

    def start(self) -> None:
        """Starts the heartbeat in a thread."""
        self._thread.start()

    def beat(self) -> None:
        """Sends one heartbeat, unless the lock is lost."""
        started = self._clock()
        try:
            number, content = self._find_highest()
            if number != self._number or not self._is_own(content):
                self._lost_because = self._explain_loss(content)
                return
            self._owner["beat"] += 1
            self._storage.write_bytes(_name_file(number), self._make_content(), attempts=1)
            self._refreshed, self.storage_error = started, None
        except Exception as error:  # the heartbeat must not end
            self.storage_error = str(error)

    def _explain_loss(self, content: bytes) -> DistillError:
        """Why the lock is lost; `content` is that of another job's, if there is one."""
        if content:
            reason = "this job lost it: its heartbeat was late; paid replies are kept"
            return DistillError(f"{self._describe(content)}; {reason}, run again later")
        if self._is_deleted:
            return DistillError(
                f"{self._storage.url} was deleted while this job ran: all that it held (replies "
                "that were paid for, labels, checkpoints, outputs) is lost unless you restore it; "
                "then run again, from the label job on"
            )
        return DistillError(
            f"{self._storage.url}/{FOLDER}: this job's lock was removed; what else was removed is "
            "lost, and all the rest is kept: run again"
        )

    def explain(self, error: Exception) -> Exception:
        """The error that a job ends with: that its folder was deleted, if it was, else `error`."""
        return self._explain_loss(b"") if self._is_deleted else error

    @property
    def _is_deleted(self) -> bool:
        return self._folder is not None and not self._folder.is_there

    def check(self) -> None:
        """Raises a DistillError if the lock is lost or cannot be refreshed."""
        if self._lost_because:
            raise self._lost_because
        silent = self._clock() - self._refreshed
        if silent > _REFRESH_TIMEOUT_SECONDS:
            raise DistillError(
                f"the run's lock could not be refreshed for {silent:.0f} s: "
                f"{self.storage_error or 'the storage does not answer'}"
            )

    @property
    def is_held(self) -> bool:
        """Whether no other job can have taken over the run; otherwise no new call may start."""
        silent = self._clock() - self._refreshed
        return self._lost_because is None and silent < _STALE_SECONDS - _HEARTBEAT_SECONDS

    def release(self) -> None:
        """Unlocks the run; a storage failure is only logged."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(_STALE_SECONDS)
        if self._folder and not self._thread.is_alive():
            self._folder.close()
            self._folder = None
        try:
            number, content = self._find_highest() if self._number else (0, b"")
            if number and number == self._number and self._is_own(content):
                self._remove(below=number + 1)
        except DistillError as error:
            log.warning("the run's lock stays until the next job takes it over: %s", error)

    def _keep_beating(self) -> None:
        while not self._released.wait(_HEARTBEAT_SECONDS) and not self._lost_because:
            self.beat()

    def _find_highest(self) -> tuple[int, bytes]:
        """The number and the content of the lock; 0 if there is none."""
        number = max(self._list_numbers(), default=0)
        try:
            return number, self._storage.read_bytes(_name_file(number)) if number else b""
        except FileNotFoundError:  # removed meanwhile
            return 0, b""

    def _list_numbers(self) -> list[int]:
        matches = (_FILE.fullmatch(name) for name in self._storage.list_files(FOLDER))
        return [int(match[1]) for match in matches if match]

    def _take(self, number: int) -> bool:
        """Creates the file with that number; whether this job now holds the lock."""
        self._refreshed = self._clock()
        self._number = number  # before the file exists: a signal may come in between
        if self._storage.create_bytes(_name_file(number), self._make_content()):
            highest, content = self._find_highest()
            if highest == number and self._is_own(content):
                return True
            # Another job took over in the meantime, and removed the crashed owner's file.
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
    """Locks a run while the block runs; waits up to `wait_seconds` for another job to end.

    Raises:
        DistillError: another job is at work on it.
    """
    lock = RunLock(storage, job)
    with storage.removing_empty_folder(FOLDER):
        try:
            lock.acquire(wait_seconds)
            lock.start()
            yield lock
        except (DistillError, OSError) as error:
            if (reason := lock.explain(error)) is not error:
                raise reason from error
            raise
        finally:
            lock.release()


def is_locked(storage: RunStorage) -> bool:
    """Whether a job holds the run, or has crashed and left its lock."""
    return bool(storage.list_files(FOLDER))


def wait_for_release(storage: RunStorage, job: str) -> None:
    """Waits up to `storage.wait_seconds` for another job; a DistillError if it is still at work."""
    if storage.wait_seconds and is_locked(storage):
        with hold_run(storage, job, storage.wait_seconds):
            pass


def _name_file(number: int) -> str:
    return f"{FOLDER}/{number}.json"


def _read_owner(content: bytes) -> dict[str, Any]:
    """A lock's content; empty if it is damaged."""
    with suppress(ValueError):
        owner = json.loads(content)
        if isinstance(owner, dict):
            return owner
    return {}


def _time_to_watch(content: bytes) -> float:
    """The seconds without a heartbeat after which a lock's owner counts as crashed."""
    owner = _read_owner(content)
    if not owner.get("machine") or owner["machine"] != _name_machine():
        return _STALE_SECONDS
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return _HEARTBEAT_SECONDS  # its workers may still be writing to the journal
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        pass
    return _STALE_SECONDS


def _name_machine() -> str:
    """Identifies this kernel and its process namespace; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
