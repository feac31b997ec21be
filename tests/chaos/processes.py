"""A job that runs, what kills its processes, and what it leaves behind."""

import os
import random
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress

from tests.support.commands import Job

KINDS = ("driver", "actor", "keeper", "raylet", "tree", "term", "int")
"""`term` and `int` are no kills: SIGTERM to the driver, Ctrl-C to all in its process group."""
CODES = {"driver": -9, "tree": -9, "keeper": 1, "raylet": 1, "term": 143, "int": 130, "actor": 0}
"""How the job ends then."""
_PATTERNS = {
    "actor": r"ray::.*(Label|Student)Actor",
    "keeper": r"ray::QuotaKeeper",
    "raylet": r"/raylet ",
}
"""What stands in the command line of a kind's process."""
_SIGNALS = {"term": signal.SIGTERM, "int": signal.SIGINT}
_PIPE_SECONDS = 20.0
LEFT_SECONDS = 10.0
"""How long a job's processes may outlive it."""
_TRACES = re.compile(r"Traceback|Fatal Python error|\*\*\* SIG|Check failed|terminate called")


class Started:
    """A job that was started, and a reader of what it says."""

    def __init__(self, job: Job) -> None:
        self.job, self.began = job, time.monotonic()
        self._output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._output += self.job.communicate()

    @property
    def is_running(self) -> bool:
        return self.job.poll() is None

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    def find(self, kind: str) -> list[int]:
        """The processes of a kind; a negative number is a process group."""
        if kind == "tree":
            return list(self.job.find_processes())
        if kind == "int":
            return [-self.job.pid]
        if kind in ("driver", "term"):
            return [self.job.pid]
        found = self.job.find_processes().items()
        return [pid for pid, command in found if re.search(_PATTERNS[kind], command)]

    def kill(self, kind: str, choice: random.Random) -> bool:
        """Kills one process of a kind, or all of the tree; whether there was one."""
        found = self.find(kind)
        for pid in found if kind == "tree" else choice.sample(found, min(1, len(found))):
            with suppress(ProcessLookupError):
                os.kill(pid, _SIGNALS.get(kind, signal.SIGKILL))
        return bool(found)

    def end(self, seconds: float) -> tuple[int, str, list[str]]:
        """Waits for the end: the exit code, what the job has logged, and problems."""
        problems = []
        try:
            code = self.job.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            problems.append(f"after {seconds:.0f} s the job was still there")
            with suppress(ProcessLookupError):
                os.kill(self.job.pid, signal.SIGABRT)  # Python prints where it is
            with suppress(subprocess.TimeoutExpired):
                self.job.wait(timeout=5)
            self.job.kill_all()
            code = self.job.wait()
        self._reader.join(timeout=_PIPE_SECONDS)
        if self._reader.is_alive():
            left = ", ".join(self.job.find_processes().values())
            problems.append(f"{_PIPE_SECONDS:.0f} s after the end the pipe was open: {left}")
            self.job.kill_all()
            self._reader.join()
        return code, self._output[1], problems

    def wait_for_processes(self) -> list[str]:
        """The processes that are left after some seconds; then kills them."""
        deadline = time.monotonic() + LEFT_SECONDS
        while (left := self.job.find_processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.job.kill_all()
        return [re.sub(r"\S*/", "", command)[:60] for command in left.values()]


def check_log(code: int, log: str) -> list[str]:
    """What is wrong with how a job has ended."""
    problems = []
    if _TRACES.search(log):
        problems.append(f"a trace of the program in the log (exit code {code}): {log[-3000:]}")
    lines = log.strip().splitlines() or [""]
    if code > 0 and not lines[-1].startswith("error: "):
        problems.append(f"exit code {code} without a line that says why: {log[-1000:]}")
    return problems
