"""Runs a job as a user does: as a command, with settings in the environment."""

import os
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MARK = "TEST_JOB"
"""The variable by which all processes of a job are found, also those whose parent has died."""


class Job(subprocess.Popen[str]):
    """A job's process."""

    def __init__(self, job: str, folder: Path, *arguments: str, **settings: object) -> None:
        """See `start_job`."""
        module = job if "." in job else f"jobs.{job}"
        inherited = ("PATH", "HOME", "TMPDIR", "LANG", "VIRTUAL_ENV", "OMP_NUM_THREADS")
        environment = {name: os.environ[name] for name in inherited if name in os.environ}
        environment |= {n: v for n, v in os.environ.items() if n.startswith("AWS_")}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
        environment["PYTHONFAULTHANDLER"] = "1"
        environment["DISTILL_STORAGE__ROOT"] = str(folder / "runs")
        environment |= {f"DISTILL_{name}": str(value) for name, value in settings.items()}
        self.mark = uuid.uuid4().hex
        environment[_MARK] = self.mark
        super().__init__(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as a shell gives it
        )

    def find_processes(self) -> dict[int, str]:
        """The command lines of all processes that the job has started and that live, by number."""
        mark = f"{_MARK}={self.mark}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = command.decode(errors="replace").strip()
        return found

    def kill_all(self) -> None:
        """Kills whatever is left of the job."""
        while processes := self.find_processes():
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.wait(0.1)


def start_job(job: str, folder: Path, *arguments: str, **settings: object) -> Job:
    """`settings` are named without DISTILL_; `folder` is the working folder and holds the runs.

    `job` is the job's name, or a module that stands for it.
    """
    return Job(job, folder, *arguments, **settings)


def run_job(
    job: str, folder: Path, *arguments: str, **settings: object
) -> subprocess.CompletedProcess[str]:
    """`start_job`, to its end."""
    with start_job(job, folder, *arguments, **settings) as process:
        try:
            output, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
