"""Kills the label job at random moments, and counts what that costs.

    python tests/support/chaos.py --moments 20 --root local
    python tests/support/chaos.py --moments 20 --root s3             a mock of S3, on loopback
    python tests/support/chaos.py --moments 20 --root s3://bucket/a  what the AWS_* variables name
    python tests/support/chaos.py --kinds driver tree --seed 7

The teacher mixes in 5 % 5xx, 2 % resets, 1 % broken JSON, 1 % hangs, and a quota. Whenever the job
has died it is started again at once, until it is done. Then every input has one row, every answer
that was ever durable is still the one that counts, and no kill has cost more answers than the job
may have in flight.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from aiohttp import web

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from common.environment import load_settings
from common.labels.resume import make_keys
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.task import load_task
from common.teacher.requests import make_request
from support.commands import Job, start_job
from support.fake_teacher import FakeTeacher, make_body, refuse, running_teacher
from support.labelling import read_answers

KINDS = ("driver", "actor", "keeper", "raylet", "tree", "term", "int")
"""`term` and `int` are no kills: SIGTERM to the driver, Ctrl-C to all in its process group."""
_CODES = {"driver": -9, "tree": -9, "keeper": 1, "raylet": 1, "term": 143, "int": 130}
_PATTERNS = {"actor": r"ray::.*LabelActor", "keeper": r"ray::QuotaKeeper", "raylet": r"/raylet "}
"""What stands in the command line of a kind's process."""
_BLOCKED, _CHATTY = 7, 8
"""Of fifty inputs, one is refused by policy, and one answered in a way that is filtered."""
_ORPHAN_SECONDS = 4.0
"""How long the actors may live on of a driver that was killed."""


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


class Faults:
    """A teacher's answers, no two of them alike, among faults, and within a quota."""

    def __init__(self, seed: int, per_minute: int) -> None:
        self._random = random.Random(seed)
        self._rate = per_minute / 60
        self._level, self._then = self._rate, time.monotonic()
        self.seen: Counter[str] = Counter()

    def __call__(self, text: str, call: int) -> str | web.StreamResponse | Exception:
        now = time.monotonic()
        self._level = min(self._rate, self._level + (now - self._then) * self._rate)
        self._then = now
        if self._level < 1:
            self.seen["429"] += 1
            return refuse(429, "slow down", headers={"Retry-After": "0.5"})
        self._level -= 1
        number = int(re.findall(r"\d+", text)[0])
        if number % 50 == _BLOCKED:
            return refuse(400, "blocked by policy", "content_policy_violation")
        share = self._random.random()
        for kind, limit in (("5xx", 0.05), ("reset", 0.07), ("broken", 0.08), ("hang", 0.09)):
            if share < limit:
                self.seen[kind] += 1
                return self._fail(kind)
        if number % 50 == _CHATTY:
            return f"Sure, here is the sentence: {text}"
        return f"{text} It was call {call}."

    def _fail(self, kind: str) -> web.StreamResponse | Exception:
        if kind == "5xx":
            return refuse(self._random.choice([500, 502, 503]), "try again")
        if kind == "reset":
            return ConnectionResetError()
        if kind == "hang":
            return TimeoutError()
        text = json.dumps(make_body("A label that is cut off"))
        return web.Response(text=text[: len(text) // 2], content_type="application/json")


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
        self.problems: list[str] = []
        self._folder, self._kinds, self._teacher = folder, list(kinds), teacher
        self._random = random.Random(seed)
        self._rows = rows
        self._began: list[float] = []
        source = folder / "examples.jsonl"
        texts = [
            f"This is the sentence with the number {i} in the middle of it." for i in range(rows)
        ]
        source.write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
        self._texts = texts
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
        self.settings = self._load_settings()
        self._task = load_task(self.settings.task)
        self._durable: dict[str, str] = {}
        self._keys = {t: self._make_key(t) for t in texts}

    def _load_settings(self) -> Settings:
        variables = {f"DISTILL_{n}": str(v) for n, v in self._variables.items()}
        with mock.patch.dict(os.environ, variables):
            return load_settings()

    def _make_key(self, text: str) -> str:
        body = make_request(self.settings.teacher, self._task, text)
        return make_keys(self.settings, body)[0]

    def run(self) -> None:
        """Starts the job until it is done."""
        while True:
            self.starts += 1
            self._began.append(time.monotonic())
            code, errors = self._run_once()
            self._note_durable()
            if code == 0:
                break
            if self.starts > len(self.moments) + 2:
                self.problems.append(f"the job does not end; last code {code}: {errors[-2000:]}")
                break
        self._attribute()
        self._check()

    def _run_once(self) -> tuple[int, str]:
        job = start_job("label", self._folder, **self._variables)
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.append(job.communicate()[1]), daemon=True)
        reader.start()
        began = time.monotonic()
        killed: Moment | None = None
        while job.poll() is None and killed is None:
            if not self._kinds:
                time.sleep(0.05)
                continue
            kind = self._kinds[0]
            if not self._await_moment(job, kind):
                continue
            moment = self._kill(job, kind)
            if moment is None:
                continue
            self._kinds.pop(0)
            self.moments.append(moment)
            if kind != "actor":
                killed = moment
            say(
                f"{moment.at - self._began[0]:.2f} s, start {self.starts}, its second "
                f"{moment.at - began:.1f}: {kind}, at {moment.answered} answers, "
                f"{moment.in_flight} in flight"
            )
        return self._end(job, killed, reader, output)

    def _await_moment(self, job: Job, kind: str) -> bool:
        """Waits for a random moment; whether the job was still there then."""
        before, began = len(self._teacher.answered), time.monotonic()
        left = self._rows - len(self._teacher.paid)
        comes_by_time = self._random.random() < 0.2 and kind in ("driver", "tree", "term", "int")
        if comes_by_time and self._at_start:
            delay = self._random.uniform(0.5, 12)  # wherever it is then, at the start mostly
            while job.poll() is None and time.monotonic() - began < delay:
                time.sleep(0.002)
        else:
            share = left / (len(self._kinds) + 1)
            wanted = self._random.randint(0, max(1, int(2 * share)))
            while job.poll() is None and len(self._teacher.answered) - before < wanted:
                time.sleep(0.002)
                if len(self._teacher.answered) == before + wanted - 1:
                    time.sleep(self._random.uniform(0, 0.1))
        return job.poll() is None

    def _kill(self, job: Job, kind: str) -> Moment | None:
        if kind == "tree":
            victims = list(job.find_processes())
        elif kind in ("driver", "term"):
            victims = [job.pid]
        elif kind != "int":
            found = [p for p, c in job.find_processes().items() if re.search(_PATTERNS[kind], c)]
            victims = self._random.sample(found, min(1, len(found)))
        if kind == "int":
            victims = [-job.pid]
        if not victims:
            time.sleep(0.1)
            return None
        teacher = self._teacher
        answered, in_flight = len(teacher.answered), teacher.in_flight
        number = {"term": signal.SIGTERM, "int": signal.SIGINT}.get(kind, signal.SIGKILL)
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return Moment(kind, time.monotonic(), answered, in_flight, self.starts)

    def _end(
        self, job: Job, killed: Moment | None, reader: threading.Thread, output: list[str]
    ) -> tuple[int, str]:
        """Waits for the job's end, and looks at what it leaves behind."""
        try:
            code = job.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.problems.append(f"60 s after {killed} the job was still there")
            job.kill_all()
            code = job.wait()
        ended, in_flight = time.monotonic(), self._teacher.in_flight
        reader.join(timeout=20)
        if reader.is_alive():
            self.problems.append(
                f"20 s after the end ({killed}) a process kept the pipe open: "
                f"{job.find_processes()}"
            )
            job.kill_all()
            reader.join()
        if killed:
            killed.code, killed.seconds_to_end = code, ended - killed.at
            killed.in_flight_at_end = in_flight
            killed.message = "".join(output[0].strip().splitlines()[-1:])
            say(f"  ended with {code} {killed.seconds_to_end:.1f} s later: {killed.message}")
            threading.Thread(target=self._watch_remains, args=(job, killed), daemon=True).start()
            if code != _CODES[killed.kind] and code != 0:
                self.problems.append(f"exit code {code}: {killed}; {output[0][-3000:]}")
        elif code != 0:
            self.problems.append(f"the job ended with {code} by itself: {output[0][-3000:]}")
        self._check_parts()
        return code, output[0]

    def _watch_remains(self, job: Job, killed: Moment) -> None:
        time.sleep(10)
        killed.left = [re.sub(r"\S*/", "", c)[:40] for c in job.find_processes().values()]

    def _note_durable(self) -> None:
        """Every answer that was durable once is still the one that counts."""
        answers = read_answers(RunStorage(self.settings))
        now = {key: reply.body for key, reply in answers.items()}
        for key, body in self._durable.items():
            if now.get(key) != body:
                self.problems.append(f"a durable answer changed: {body} is {now.get(key)}")
        self._durable = now

    def _check_parts(self) -> None:
        storage = RunStorage(self.settings)
        for name in storage.list_files("labels"):
            if name.endswith(".parquet"):
                storage.read_table(name)  # raises where it is cut off

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

    def _check(self) -> None:
        storage, problems = RunStorage(self.settings), self.problems
        names = [n for n in storage.list_files("labels") if n.endswith(".parquet")]
        rows: list[dict[str, Any]] = [r for n in names for r in storage.read_table(n).to_pylist()]
        if sorted(row["text"] for row in rows) != sorted(self._texts):
            problems.append(f"{len(rows)} rows for {self._rows} inputs, not one each")
        expected = Counter(_expect(text) for text in self._texts)
        found = Counter(row["status"] for row in rows)
        if found != expected:
            errors = Counter(row["error"] for row in rows)
            problems.append(f"rows by status: {found}, expected {expected}; {errors}")
        for row in rows:
            reply = self._durable.get(self._keys[row["text"]])
            if row["status"] == "ok" and (reply is None or row["label"] not in reply):
                problems.append(f"the label {row['label']!r} is not the journal's: {reply}")
        concurrency = self.settings.teacher.max_concurrency
        for moment in self.moments:
            limit = 0 if moment.kind in ("term", "int") else concurrency
            if moment.paid_again > limit:
                problems.append(f"more than {limit} answers were paid again: {moment}")
        calls = len(self._teacher.bodies)
        job = start_job("label", self._folder, **self._variables)
        _, errors = job.communicate(timeout=120)
        if job.returncode != 0 or "already done" not in errors:
            problems.append(f"a rerun ended with {job.returncode}: {errors}")
        if len(self._teacher.bodies) != calls:
            problems.append("a rerun of the finished run called the teacher")
        job.kill_all()

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


def _expect(text: str) -> str:
    number = int(re.findall(r"\d+", text)[0]) % 50
    return {_BLOCKED: "failed", _CHATTY: "filtered"}.get(number, "ok")


def say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def running_s3() -> Iterator[str]:
    """The URL of a bucket in a mock of S3, in a process of its own."""
    import fsspec

    command = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stdout)
            url = next(match[0] for match in found if match)
            threading.Thread(target=server.stdout.read, daemon=True).start()
            os.environ |= {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            bucket = f"s3://bucket-{uuid.uuid4().hex}"
            fsspec.filesystem("s3").mkdir(bucket)
            yield bucket
        finally:
            server.kill()


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
    mocked = running_s3() if options.root == "s3" else nullcontext(options.root)
    with mocked as root, tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        place = {} if root == "local" else {"STORAGE__ROOT": f"{root}/{folder.name}"}
        faults = Faults(options.seed, options.requests_per_minute)
        with running_teacher(faults) as teacher:
            teacher.seconds = 0.1
            chaos = Chaos(folder, options.rows, kinds, teacher, options.seed, **place)
            chaos.run()
            time.sleep(10)
            say(chaos.describe())
            say(f"faults: {dict(faults.seen)}")
    for problem in chaos.problems:
        say(f"PROBLEM: {problem}")
    return min(1, len(chaos.problems))


if __name__ == "__main__":
    sys.exit(main())
