"""What the benchmarks share: the server, commands with their memory, figures and tables."""

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tests.benchmarks.server import ServerSettings

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build"
_MARK = "BENCHMARK_MARK"
_SAMPLE_SECONDS = 0.2
_PSS_EVERY = 10
"""The proportional set size is dear to read: one sample in so many has it."""


_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a two-sided 95 % interval, by the number of seeds."""


@dataclass(frozen=True)
class Teacher:
    """A running server."""

    url: str

    def read_stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.replace("/v1", "/stats")) as response:
            return json.load(response)


@contextmanager
def running_server(settings: ServerSettings) -> Iterator[Teacher]:
    """The server in a process of its own, which prints its port."""
    flags = []
    for field in fields(settings):
        flag, value = field.name.replace("_", "-"), getattr(settings, field.name)
        no = "no-" if value is False else ""
        flags += [f"--{no}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    command = [sys.executable, "-m", "tests.benchmarks.server", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Teacher(f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
        finally:
            process.kill()


@dataclass(frozen=True)
class Run:
    """A command that has ended. Times are those of the monotonic clock, sizes are bytes."""

    started: float
    ended: float
    code: int
    peak_rss: int
    peak_pss: int
    output: str

    @property
    def seconds(self) -> float:
        return self.ended - self.started


def run_command(
    command: Sequence[str | Path], folder: Path, environment: dict[str, str], sample: bool = False
) -> Run:
    """Runs a command in `folder` to its end; `sample` measures it and all of its descendants."""
    mark = uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("w+", encoding="utf-8") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=environment | {_MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        memory = Memory(process.pid, mark)
        sampler = threading.Thread(target=memory.watch, daemon=True)
        if sample:
            sampler.start()
        code = process.wait()
        ended = time.monotonic()
        memory.ended.set()
        if sample:
            sampler.join()
        output.seek(0)
        text = output.read()
    return Run(started, ended, code, memory.peak_rss, memory.peak_pss, text)


class Memory:
    """Samples a process and all that came out of it, also what has left its parent since.

    A descendant is told by the mark in its environment, or by its parent: Ray's workers overwrite
    their environment with their title.
    """

    def __init__(self, pid: int, mark: str) -> None:
        self.ended = threading.Event()
        self.peak_rss = self.peak_pss = 0
        self._members, self._strangers = {pid}, set[int]()
        self._mark = f"{_MARK}={mark}".encode()

    def watch(self) -> None:
        """Samples until `ended` is set."""
        count = 0
        while not self.ended.wait(_SAMPLE_SECONDS):
            alive = self._find()
            self.peak_rss = max(self.peak_rss, sum(_read_rss(pid) for pid in alive))
            if count % _PSS_EVERY == 0:
                self.peak_pss = max(self.peak_pss, sum(_read_pss(pid) for pid in alive))
            count += 1

    def _find(self) -> list[int]:
        present = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
        self._members &= present
        self._strangers &= present
        for pid in sorted(present - self._members - self._strangers):
            parent = _read(pid, "stat").rpartition(b")")[2].split()[1:2]
            is_child = bool(parent) and int(parent[0]) in self._members
            is_member = is_child or self._mark in _read(pid, "environ")
            (self._members if is_member else self._strangers).add(pid)
        return sorted(self._members)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""  # it has just ended


def _read_rss(pid: int) -> int:
    words = _read(pid, "statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if words else 0


def _read_pss(pid: int) -> int:
    lines = _read(pid, "smaps_rollup").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(b"Pss:"))


def read_timing(stats: dict[str, Any], run: Run) -> dict[str, float]:
    """Start-up, steady state and end, by the server's clock, which is also the run's.

    `rate` counts calls from the first request to the last reply; `middle_rate` leaves out the
    first and the last tenth.
    """
    first, last, ends = min(stats["started"]), max(stats["ended"]), sorted(stats["ended"])
    count = len(ends)
    middle = ends[int(count * 0.9)] - ends[int(count * 0.1)]
    return {
        "rate": count / (last - first),
        "middle_rate": 0.8 * count / middle if middle else 0.0,
        "startup_seconds": first - run.started,
        "steady_seconds": last - first,
        "end_seconds": run.ended - last,
        "wall_seconds": run.seconds,
        "most_in_flight": stats["most_in_flight"],
    }


def describe_spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, with the least and the greatest where there are several."""
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.{digits}f} – {max(values):.{digits}f})"


def describe_seeds(shares: Sequence[float]) -> str:
    """Half the 95 % interval of a mean over the seeds, in points; empty of one seed."""
    if len(shares) not in _T_95:
        return ""
    half = _T_95[len(shares)] * statistics.stdev(shares) / math.sqrt(len(shares))
    return f"± {100 * half:.1f}"


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows of the same columns as Markdown."""
    print(f"\n{title}\n")
    print("| " + " | ".join(rows[0]) + " |")
    print("| " + " | ".join("---" for _ in rows[0]) + " |")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
