"""Kills the label job at random moments, and counts what that costs.

    python -m tests.chaos.moments --moments 20 --root local
    python -m tests.chaos.moments --moments 20 --root s3             a mock of S3, on loopback
    python -m tests.chaos.moments --moments 20 --root s3://bucket/a  what the AWS_* variables name
    python -m tests.chaos.moments --kinds driver tree --seed 7

The teacher mixes in faults, 12 % of the calls, and a quota. Whenever the job has died it is started
again at once, until it is done. Then every input has one row, every answer that was ever durable is
still the one that counts, and no kill has cost more answers than the job may have in flight.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.ledger import Ledger, load_own_settings, write_examples
from tests.chaos.processes import CODES, KINDS, LEFT_SECONDS, Started, check_log
from tests.chaos.teachers import Faults
from tests.support.commands import start_job
from tests.support.failing_store import make_bucket, running_s3
from tests.support.fake_teacher import FakeTeacher, running_teacher

_ORPHAN_SECONDS = 4.0
"""How long the actors may live on of a driver that was killed."""
_END_SECONDS = 60.0
"""How long a job may take to end after a kill."""


@dataclass
class Moment:
    """A kill, and what the teacher saw of it."""

    kind: str
    at: float
    answered: int
    in_flight: int
    start: int
    calls_after: int = 0
    calls_of_orphans: int = 0
    code: int | None = None
    message: str = ""
    seconds_to_end: float = 0.0
    in_flight_at_end: int = 0
    paid_again: int = 0
    left: list[str] = field(default_factory=list)

    def distance(self, at: float) -> float:
        """Seconds from a time to when the job, or its orphans, may have lost answers."""
        return max(0.0, self.at - at, at - self.at - self.seconds_to_end - _ORPHAN_SECONDS)


class Chaos:
    """One run, killed again and again."""

    def __init__(
        self,
        folder: Path,
        rows: int,
        kinds: list[str],
        teacher: FakeTeacher,
        seed: int,
        at_start: bool = True,
        **settings: object,
    ) -> None:
        """`kinds` are those of the kills to come, in their order; some are `at_start`."""
        self._at_start = at_start
        self.moments: list[Moment] = []
        self.starts = 0
        self._folder, self._kinds, self._teacher = folder, list(kinds), teacher
        self._random = random.Random(seed)
        self._rows = rows
        self._began: list[float] = []
        self._watchers: list[threading.Thread] = []
        source = folder / "examples.jsonl"
        texts = write_examples(source, rows)
        self._variables: dict[str, object] = {
            "STORAGE__ROOT": folder / "runs",
            "DATA__SOURCE": source,
            "DATA__TEXT_COLUMN": "text",
            "DATA__TRAIN_LIMIT": 0,
            "TEACHER__BASE_URL": teacher.url,
            "TEACHER__MODEL": "big",
            "TEACHER__TIMEOUT_SECONDS": 4,
            "TEACHER__MAX_CONCURRENCY": 32,
            "LABEL__ACTORS": 2,
        } | settings
        self.settings = load_own_settings(self._variables)
        self._ledger = Ledger(self.settings, texts)
        self.problems = self._ledger.problems

    def run(self) -> None:
        """Starts the job until it is done."""
        while True:
            self.starts += 1
            self._began.append(time.monotonic())
            code, log = self._run_once()
            self._ledger.note()
            if code == 0:
                break
            if self.starts > len(self.moments) + 2:
                self.problems.append(f"the job does not end; last code {code}: {log[-2000:]}")
                break
        for watcher in self._watchers:
            watcher.join()
        self._attribute()
        self._ledger.check()
        self._check_moments()
        self._check_rerun()

    def _run_once(self) -> tuple[int, str]:
        started = Started(start_job("label", self._folder, **self._variables))
        killed: Moment | None = None
        while started.is_running and killed is None:
            if not self._kinds:
                time.sleep(0.05)
                continue
            kind = self._kinds[0]
            if not self._await_moment(started, kind):
                continue
            moment = self._kill(started, kind)
            if moment is None:
                continue
            self._kinds.pop(0)
            self.moments.append(moment)
            if kind != "actor":
                killed = moment
            say(
                f"{moment.at - self._began[0]:.2f} s, start {self.starts}, its second "
                f"{moment.at - started.began:.1f}: {kind}, at {moment.answered} answers, "
                f"{moment.in_flight} in flight"
            )
        return self._end(started, killed)

    def _await_moment(self, started: Started, kind: str) -> bool:
        """Waits for a random moment; whether the job was still there then."""
        before, began = len(self._teacher.answered), time.monotonic()
        left = self._rows - len(self._teacher.paid)
        comes_by_time = self._random.random() < 0.2 and kind in ("driver", "tree", "term", "int")
        if comes_by_time and self._at_start:
            delay = self._random.uniform(0.5, 12)  # wherever it is then, at the start mostly
            while started.is_running and time.monotonic() - began < delay:
                time.sleep(0.002)
        else:
            share = left / (len(self._kinds) + 1)
            wanted = self._random.randint(0, max(1, int(2 * share)))
            while started.is_running and len(self._teacher.answered) - before < wanted:
                time.sleep(0.002)
                if len(self._teacher.answered) == before + wanted - 1:
                    time.sleep(self._random.uniform(0, 0.1))
        return started.is_running

    def _kill(self, started: Started, kind: str) -> Moment | None:
        answered, in_flight = len(self._teacher.answered), self._teacher.in_flight
        if not started.kill(kind, self._random):
            time.sleep(0.1)
            return None
        return Moment(kind, time.monotonic(), answered, in_flight, self.starts)

    def _end(self, started: Started, killed: Moment | None) -> tuple[int, str]:
        """Waits for the job's end, and looks at what it leaves behind."""
        code, log, problems = started.end(_END_SECONDS)
        in_flight = self._teacher.in_flight
        if killed:
            killed.code, killed.seconds_to_end = code, time.monotonic() - killed.at
            killed.in_flight_at_end = in_flight
            killed.message = "".join(log.strip().splitlines()[-1:])
            say(f"  ended with {code} {killed.seconds_to_end:.1f} s later: {killed.message}")
            watcher = threading.Thread(target=self._watch_remains, args=(started, killed))
            watcher.start()
            self._watchers.append(watcher)
            if code not in (CODES[killed.kind], 0):
                problems.append(f"exit code {code}: {log[-3000:]}")
        elif code != 0:
            problems.append(f"the job ended with {code} by itself: {log[-3000:]}")
        self.problems += [f"{p}; {killed}" for p in [*problems, *check_log(code, log)]]
        return code, log

    def _watch_remains(self, started: Started, killed: Moment) -> None:
        killed.left = started.wait_for_processes()
        if killed.left:
            self.problems.append(f"left after {LEFT_SECONDS:g} s: {killed}")

    def _attribute(self) -> None:
        """Puts each answer that was paid again down to the kill that was nearest to the first."""
        before: dict[str, float] = {}
        for at, text in self._teacher.answered:
            if text in before:
                if not self.moments:
                    self.problems.append(f"paid twice without a kill: {text}")
                    continue
                by = min(self.moments, key=lambda moment: moment.distance(before[text]))
                by.paid_again += 1
                if by.distance(before[text]) > 1:
                    self.problems.append(f"paid twice without a kill: {text}; nearest was {by}")
            before[text] = at
        for moment in self.moments:
            ended = moment.at + moment.seconds_to_end
            end = min([began for began in self._began if began > ended], default=float("inf"))
            moment.calls_after = sum(moment.at < t < end for t in self._teacher.began)
            moment.calls_of_orphans = sum(ended < t < end for t in self._teacher.began)

    def _check_moments(self) -> None:
        concurrency = self.settings.teacher.max_concurrency
        for moment in self.moments:
            limit = 0 if moment.kind in ("term", "int") else concurrency
            if moment.paid_again > limit:
                self.problems.append(f"more than {limit} answers were paid again: {moment}")

    def _check_rerun(self) -> None:
        calls = len(self._teacher.bodies)
        started = Started(start_job("label", self._folder, **self._variables))
        code, log, problems = started.end(_END_SECONDS)
        if code != 0 or "already done" not in log:
            problems.append(f"a rerun ended with {code}: {log}")
        if len(self._teacher.bodies) != calls:
            problems.append("a rerun of the finished run called the teacher")
        self.problems += problems

    def describe(self) -> str:
        """What it took."""
        teacher = self._teacher
        lines = [
            f"{'kind':7} {'answered':>8} {'in flight':>9} {'paid again':>10} {'code':>5} "
            f"{'ended':>7} {'calls after':>11} {'of orphans':>10}  left after 10 s"
        ]
        for m in self.moments:
            code = "" if m.code is None else m.code
            lines.append(
                f"{m.kind:7} {m.answered:8} {m.in_flight:9} {m.paid_again:10} {code:>5} "
                f"{m.seconds_to_end:5.1f} s {m.calls_after:11} {m.calls_of_orphans:10}  "
                f"{', '.join(m.left)}"
            )
        lines.append(
            f"{len(self.moments)} kills, {self.starts} starts, {self._rows} rows, "
            f"{len(teacher.bodies)} calls, {len(teacher.answered)} answers; paid again "
            f"{teacher.paid_again}, in flight at the kills "
            f"{sum(max(m.in_flight, m.in_flight_at_end) for m in self.moments)}, most in flight "
            f"{teacher.most_in_flight}"
        )
        return "\n".join(lines)


def say(line: str) -> None:
    print(line, flush=True)


def choose_kinds(moments: int, kinds: list[str], seed: int) -> list[str]:
    """Each kind about as often, in random order."""
    chosen = [kinds[i % len(kinds)] for i in range(moments)]
    random.Random(seed).shuffle(chosen)
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--root", default="local", help="local, s3, or a URL")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS[:5]))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests-per-minute", type=int, default=4800, help="the quota")
    options = parser.parse_args()
    kinds = choose_kinds(options.moments, options.kinds, options.seed)
    servers = running_s3() if options.root == "s3" else nullcontext({})
    with servers as variables, tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        os.environ |= variables
        root = make_bucket(variables) if variables else options.root
        place = {} if root == "local" else {"STORAGE__ROOT": f"{root}/{folder.name}"}
        faults = Faults(options.seed, options.requests_per_minute)
        with running_teacher(faults) as teacher:
            teacher.seconds = 0.1
            chaos = Chaos(folder, options.rows, kinds, teacher, options.seed, **place)
            chaos.run()
            say(chaos.describe())
            say(f"faults: {dict(faults.seen)}")
    for problem in chaos.problems:
        say(f"PROBLEM: {problem}")
    return min(1, len(chaos.problems))


if __name__ == "__main__":
    sys.exit(main())
