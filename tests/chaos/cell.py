"""One attack: a job, a fault, a rerun to the end, and what has to hold then."""

import io
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock
from zlib import crc32

import pyarrow.parquet as pq

from common.errors import DistillError
from tests.chaos.faults import Fault
from tests.chaos.ledger import Ledger, load_own_settings
from tests.chaos.processes import LEFT_SECONDS, Started, check_log
from tests.chaos.teachers import KEY, Faults, answer_rightly
from tests.chaos.works import Work, choose_moment, make_label_settings
from tests.chaos.world import World
from tests.support.commands import start_job

_LIMIT_SECONDS = 180.0
"""How long a job may run; then it hangs."""
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 0.1
_FAST_PER_MINUTE = 6000


@dataclass
class Result:
    """What has come of an attack."""

    job: str
    fault: str
    seconds: float = 0.0
    note: str = ""
    excuse: str = ""
    problems: list[str] = field(default_factory=list)


class Cell:
    """A job under a fault.

    Attributes:
        seed: of all that is random in it.
        folder: of its own.
        environment: the variables of its jobs, besides settings.
        code: the exit code of the job under the fault.
        problems: what does not hold.
        note: what is worth telling.
    """

    def __init__(self, world: World, work: Work, fault: Fault, seed: int) -> None:
        self.world, self.work, self.fault = world, work, fault
        self.seed = crc32(f"{seed} {work.name} {fault.name}".encode())
        self.random = random.Random(self.seed)
        self.folder = world.make_folder()
        self.problems: list[str] = []
        self.note = ""
        (self.folder / "t").mkdir()
        self.environment = {"TMPDIR": str(self.folder / "t"), "OMP_NUM_THREADS": "1"}
        in_s3 = bool(world.root) or fault.needs_s3
        base, variables = world.find_s3() if in_s3 else ("", {})
        self._root = f"{base}/{self.folder.name}" if in_s3 else str(self.folder / "runs")
        self.environment |= variables
        self._logs: list[str] = []
        self._settings = world.settings | {"STORAGE__ROOT": self._root}
        self._texts: list[str] = []
        if work.name == "label":
            own, self._texts = make_label_settings(self.folder)
            self._settings |= own

    def run(self) -> Result:
        """Attacks the job, runs it again, and checks what has come of it."""
        if self.work.after:
            self.world.open_undisturbed(self.work.name)  # which makes it, if it is the first
        began = time.monotonic()
        with self.fault.around(self):
            self._prepare()
            self._attack()
            self._rerun()
            self._check()
        took = time.monotonic() - began
        return Result(self.work.name, self.fault.name, took, self.note, "", self.problems)

    def start(self) -> Started:
        """Starts the job."""
        with mock.patch.dict(os.environ, self.environment):
            return Started(start_job(self.work.name, self.folder, **self._settings))

    def end(self, started: Started, seconds: float = _LIMIT_SECONDS) -> tuple[int, str]:
        """Waits for a job's end, and checks how it ends: its exit code, and its log."""
        code, log, problems = started.end(seconds)
        self._logs.append(log)
        self.problems += problems + check_log(code, log)
        if left := started.wait_for_processes():
            self.problems.append(f"left {LEFT_SECONDS:g} s after the end: {', '.join(left)}")
        return code, log

    def _prepare(self) -> None:
        """What the job starts from, and a teacher as it is mostly."""
        self.storage = self.world.open_storage(self._root)
        if self.work.after:
            self.world.copy_undisturbed(self.work.after, self.storage)
        teacher = self.world.teacher
        teacher.forget()
        teacher.answer, teacher.seconds = answer_rightly, _ANSWER_SECONDS
        if self._texts:
            teacher.answer = Faults(self.seed, _FAST_PER_MINUTE, shares={})
            self._ledger = Ledger(load_own_settings(self._settings), self._texts, self.storage)

    def _attack(self) -> None:
        """Runs the job under the fault."""
        fault, teacher = self.fault, self.world.teacher
        struck = healed = float("inf")
        if fault.part is None:
            fault.strike(self, None)
            struck = time.monotonic()
        else:
            wanted = choose_moment(self.work, self.random, *fault.part)
        started = self.start()
        while started.is_running and started.seconds < _LIMIT_SECONDS:
            now = time.monotonic()
            if struck > now and self.work.measure(teacher, self.storage) >= wanted:
                time.sleep(self.random.uniform(0, 0.1))
                self.problems += fault.strike(self, started)
                struck = time.monotonic()
            if healed > now and now > struck + fault.lasts:
                fault.heal(self)
                healed = now
            time.sleep(_POLL_SECONDS)
        self.code, log = self.end(started, max(1.0, _LIMIT_SECONDS - started.seconds))
        if struck > time.monotonic():
            self.problems.append(
                f"the job ended with {self.code} before the fault came: {log[-2000:]}"
            )
        elif healed > time.monotonic():
            fault.heal(self)
        self.check_end(self.code, log)

    def check_end(self, code: int, log: str) -> None:
        """Checks how the job under the fault has ended."""
        fault, last = self.fault, "".join(log.strip().splitlines()[-1:])
        if code not in fault.codes:
            self.problems.append(f"exit code {code}, not one of {fault.codes}: {log[-2000:]}")
        if code > 0 and fault.words not in last:
            self.problems.append(f"the last line does not say {fault.words!r}: {last}")
        if code > 0 and code not in (130, 143):
            self.note = "; ".join(filter(None, [self.note, last.removeprefix("error: ")]))
        if self._texts:
            self._ledger.note()

    def _rerun(self) -> None:
        was_done = self.code == 0
        calls = len(self.world.teacher.bodies)
        code, log = self.end(self.start())
        if code != 0:
            self.problems.append(f"the rerun ended with {code}: {log[-3000:]}")
        if was_done and "already done" not in log:
            self.problems.append(f"the job had ended with 0, and is not done: {log[-2000:]}")
        if was_done and len(self.world.teacher.bodies) > calls:
            self.problems.append("the rerun of a job that was done called the teacher")

    def _check(self) -> None:
        if self._texts:
            self._ledger.note()
            self._ledger.check()
            self.problems += self._ledger.problems
        else:
            whole = self.world.open_undisturbed(self.work.name)
            try:
                self.problems += self.work.compare(self.storage, whole)
            except (DistillError, FileNotFoundError) as error:
                self.problems.append(f"a result cannot be read: {error}")
        if self.world.teacher.paid_again > self.fault.lost:
            again = self.world.teacher.paid_again
            self.problems.append(f"{again} answers paid again, not at most {self.fault.lost}")
        self.problems += [f"the key stands in {name}" for name in self.find_key()]

    def find_key(self) -> Iterator[str]:
        """Where the API's key was written: files of the job, of Ray, of the run, and logs."""
        for number, log in enumerate(self._logs, start=1):
            if KEY in log:
                yield f"the log of start {number}"
        for path in self.folder.rglob("*"):
            if path.is_file() and _has_key(path.name, path.read_bytes()):
                yield str(path.relative_to(self.folder))
        if not self.storage.is_local:
            for name in self.storage.list_files(""):
                if _has_key(name, self.storage.read_bytes(name)):
                    yield f"{self.storage.url}/{name}"


def _has_key(name: str, content: bytes) -> bool:
    if name.endswith(".parquet"):
        return KEY in str(pq.read_table(io.BytesIO(content)).to_pylist())
    return KEY.encode() in content
