"""What happens to a job: each fault is one row of the matrix."""

import random
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.chaos.processes import CODES, Started
from tests.chaos.teachers import Faults, RightAmongFaults, fail_always
from tests.chaos.works import CONCURRENCY, Work
from tests.support.failing_store import FailingStore

_QUOTA_PER_MINUTE = 6000


class Fault:
    """A row of the matrix.

    Attributes:
        name: the row's.
        codes: the exit codes with which the job may end.
        words: what stands in its last line, if it ends with an error.
        lost: how many answers may be paid for again.
        lasts: seconds after which what fails works again, unless the job ends before.
        needs_s3: whether the run is in S3.
        part: the least and the most share of the way at which it comes; None: from the start.
    """

    name = ""
    codes: tuple[int, ...] = (0,)
    words = ""
    lost = 0
    lasts = 8.0
    needs_s3 = False
    part: tuple[float, float] | None = (0.0, 1.0)

    def excuse(self, work: Work) -> str:
        """Why a job has no such fault; empty if it has."""
        return ""

    @contextmanager
    def around(self, cell: Any) -> Iterator[None]:
        """Lasts from before the job's start to after its end; see `cell.Cell`."""
        yield

    def strike(self, cell: Any, started: Any) -> list[str]:
        """Disturbs a `Started` job, or, before its start, None; gives problems."""
        return []

    def heal(self, cell: Any) -> None:
        """Mends what `strike` has broken."""


class Kill(Fault):
    """SIGKILL to one process or all, SIGTERM to the job, Ctrl-C to all."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self._kind = name, kind
        self.codes = (CODES[kind],)
        self.lost = 0 if kind in ("term", "int") else CONCURRENCY

    def excuse(self, work: Work) -> str:
        needs_ray = self._kind in ("actor", "raylet", "keeper")
        return "no Ray" if needs_ray and not work.has_ray else ""

    @property
    def part(self) -> tuple[float, float]:  # type: ignore[override]
        """Ray is at work in predict before a teacher is asked."""
        return (0.0, 0.5) if self._kind in ("actor", "raylet", "keeper") else (0.0, 1.0)

    def strike(self, cell: Any, started: Any) -> list[str]:
        return [] if started.kill(self._kind, cell.random) else [f"there is no {self._kind}"]


class FullDisk(Fault):
    """A small tmpfs is filled up; where none can be mounted, files cannot grow."""

    name = "full disk"
    codes = (0, 1)
    words = "free some space"
    lost = CONCURRENCY

    @contextmanager
    def around(self, cell: Any) -> Iterator[None]:
        self._place = cell.folder / "runs"
        self._place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "chaos", str(self._place)]
        self._is_mounted = subprocess.run(command, capture_output=True).returncode == 0
        cell.note = "tmpfs" if self._is_mounted else "RLIMIT_FSIZE"
        try:
            yield
        finally:
            if self._is_mounted:
                subprocess.run(["umount", str(self._place)], check=True)

    def strike(self, cell: Any, started: Any) -> list[str]:
        if not self._is_mounted:
            self._limited = _limit(started, resource.RLIMIT_FSIZE, lambda pid: 20)
            self.words = "run again"  # EFBIG: the limit is no full disk
            return []
        with suppress(OSError), (self._place / "filler").open("wb", buffering=0) as filler:
            for size in (2**16, 2**10, 1):
                with suppress(OSError):
                    while True:
                        filler.write(bytes(size))
        return []

    def heal(self, cell: Any) -> None:
        if self._is_mounted:
            (self._place / "filler").unlink(missing_ok=True)
            return
        for pid, before in self._limited.items():
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


class Store(Fault):
    """Some or all requests of S3 fail, or are slow."""

    needs_s3 = True
    codes = (0, 1)
    lost = CONCURRENCY

    def __init__(
        self, name: str, failure: int | None, share: float, seconds: float = 0.0, **more: Any
    ) -> None:
        """`share` of the requests fail with a status, and all take `seconds` longer.

        If all of them fail, they do so from some moment on; else from the start.
        """
        self.name = name
        self._failure, self._share, self._seconds = failure, share, seconds
        self.part = (0.0, 1.0) if share == 1 else None
        for field, value in more.items():
            setattr(self, field, value)

    @contextmanager
    def around(self, cell: Any) -> Iterator[None]:
        bucket, variables = cell.world.find_s3()
        self._store = FailingStore(bucket, variables["AWS_ENDPOINT_URL"])
        with self._store.serving():
            cell.environment |= variables | {"AWS_ENDPOINT_URL": self._store.url}
            yield

    def strike(self, cell: Any, started: Any) -> list[str]:
        choice = random.Random(cell.seed)

        def fail(method: str, path: str) -> int | None:
            if self._seconds:
                time.sleep(self._seconds)
            return self._failure if choice.random() < self._share else None

        self._store.fails = fail
        return ""

    def heal(self, cell: Any) -> None:
        self._store.fails = lambda method, path: None


class Teacher(Fault):
    """The teacher's faults, of all kinds, from the start."""

    name = "teacher's faults"
    part = None
    lasts = 600.0

    def excuse(self, work: Work) -> str:
        return "" if work.asks else "no teacher"

    def strike(self, cell: Any, started: Any) -> list[str]:
        kind = Faults if cell.work.name == "label" else RightAmongFaults
        cell.world.teacher.answer = kind(cell.seed, _QUOTA_PER_MINUTE)
        return []


class Outage(Fault):
    """The teacher is down for some seconds."""

    name = "teacher's outage"
    lasts = 6.0

    def excuse(self, work: Work) -> str:
        return "" if work.asks else "no teacher"

    def strike(self, cell: Any, started: Any) -> list[str]:
        self._answer, cell.world.teacher.answer = cell.world.teacher.answer, fail_always
        return []

    def heal(self, cell: Any) -> None:
        cell.world.teacher.answer = self._answer


class SecondCopy(Fault):
    """The same job is started twice at once."""

    name = "second copy"
    codes = (0, 1)
    words = "is held since"
    part = None
    lasts = 600.0

    def strike(self, cell: Any, started: Any) -> list[str]:
        self._other = cell.start()
        return []

    def heal(self, cell: Any) -> None:
        code, log = cell.end(self._other)
        cell.check_end(code, log)
        cell.note = f"they ended with {cell.code} and {code}"
        if cell.code and code:
            cell.problems.append("none of the copies did the job")


class Memory(Fault):
    """A process gets no more memory: allocations fail, as before the kernel kills it."""

    name = "no memory"
    codes = (0, 1, 2)
    lost = CONCURRENCY
    part = (0.0, 0.5)

    def strike(self, cell: Any, started: Any) -> list[str]:
        kind = "actor" if cell.work.has_ray else "driver"
        pids = started.find(kind)[:1]
        if not pids:
            return [f"there is no {kind}"]
        resource.prlimit(pids[0], resource.RLIMIT_AS, (_measure_memory(pids[0]),) * 2)
        return []


def _measure_memory(pid: int) -> int:
    """Bytes of address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def _limit(started: Started, kind: int, find: Any) -> dict[int, tuple[int, int]]:
    """Limits Python's processes of a job; returns their limits before."""
    before = {}
    for pid, command in started.job.find_processes().items():
        if "python" in command or command.startswith("ray::"):  # others end with a signal
            with suppress(ProcessLookupError):
                limits = resource.prlimit(pid, kind)
                before[pid] = limits
                resource.prlimit(pid, kind, (find(pid), limits[1]))
    return before


def make_faults() -> dict[str, Fault]:
    """All faults by name, in the order of the rows."""
    faults: list[Fault] = [
        Kill("kill -9 tree", "tree"),
        Kill("kill -9 driver", "driver"),
        Kill("kill -9 actor", "actor"),
        Kill("kill -9 raylet", "raylet"),
        Kill("SIGTERM", "term"),
        Kill("Ctrl-C", "int"),
        FullDisk(),
        Store("S3: 500 for 8 s", 500, 1.0),
        Store("S3: 503 slow down", 503, 0.25),
        Store("S3: slow", None, 0.0, seconds=0.25, lasts=600.0),
        Store("S3: 403", 403, 1.0, lasts=600.0, codes=(1, 3), words="AWS_"),
        Teacher(),
        Outage(),
        SecondCopy(),
        Memory(),
    ]
    return {fault.name: fault for fault in faults}
