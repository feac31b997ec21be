"""A session in this process: what is in flight at its end, and what is left behind."""

import json
import os
import signal
import threading
import time

import pytest

from common.errors import DistillError, StoppedError, TeacherRefusedError
from common.labels.lanes.local import LocalLane
from common.labels.session import Session
from common.records import Example, hash_text
from common.run.lock import hold_run
from common.run.run import Run
from common.run.storage import RunStorage
from common.tasks.task import Task
from support.fake_teacher import refuse, running_teacher
from support.labelling import resume_rows

EXAMPLES = [Example(hash_text(text), text) for text in ("one", "two", "three", "four", "five")]


@pytest.fixture
def make_run(settings):
    def make(url, **values):
        own = settings(TEACHER__BASE_URL=url, TEACHER__MODEL="big", **values)
        return Run(own, Task(name="echo"), RunStorage(own))

    return make


def ask(run, make_lane=LocalLane, examples=EXAMPLES):
    with hold_run(run.storage, "evaluate") as lock:
        known, _ = resume_rows(run, examples)
        return Session(run, lock, known).ask(make_lane, "teacher")


def count_replies(run):
    names = [name for name in run.storage.list_files("journal") if name.endswith(".jsonl")]
    lines = [line for name in names for line in run.storage.read_bytes(name).splitlines()]
    return sum(json.loads(line)["http_status"] == 200 for line in lines)


def test_all_that_is_missing_is_asked_for_once(make_run):
    with running_teacher(lambda text, call: text) as teacher:
        run = make_run(teacher.url)
        tables, summary = ask(run, examples=EXAMPLES[:2])
        assert sum(map(len, tables)) == 2
        tables, summary = ask(run)
        assert (sum(map(len, tables)), summary["calls"]) == (3, 3)
        assert len(teacher.bodies) == 5
    assert not any("in-flight" in name for name in run.storage.list_files("journal"))


def test_a_refusal_waits_for_the_calls_in_flight_however_slow(make_run):
    def answer(text, call):
        return refuse(401, "no more") if text == "five" else text

    with running_teacher(answer) as teacher:
        teacher.seconds = lambda text: 0.5 if text == "five" else 4.0
        run = make_run(teacher.url)
        with pytest.raises(TeacherRefusedError):
            ask(run)
    assert count_replies(run) == len(teacher.bodies) - 1
    assert not any("in-flight" in name for name in run.storage.list_files("journal"))


def test_a_signal_lets_calls_in_flight_end_and_says_what_is_lost(make_run):
    with running_teacher(lambda text, call: text) as teacher:
        teacher.seconds = 1.5
        run = make_run(teacher.url, LABEL__DRAIN_SECONDS=0)
        timer = threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGTERM])
        timer.start()
        with pytest.raises(StoppedError):
            ask(run)
        (name,) = [n for n in run.storage.list_files("journal") if "in-flight" in n]
        assert 1 <= run.storage.read_json(name)["in_flight"] <= run.settings.teacher.max_concurrency
        time.sleep(2)  # the thread ends what it has


def test_a_lane_that_cannot_start_loses_nothing(make_run):
    class Broken(LocalLane):
        def start(self, work):
            raise DistillError("no way")

    with running_teacher(lambda text, call: text) as teacher:
        run = make_run(teacher.url)
        with pytest.raises(DistillError, match="no way"):
            ask(run, Broken)
    assert run.storage.list_files("") == []


def test_a_session_whose_lock_was_taken_leaves_no_word_of_its_own(make_run):
    """The job that took it has charged the calls already."""
    with running_teacher(lambda text, call: text) as teacher:
        teacher.seconds = 6.0
        run = make_run(teacher.url)

        def take_over(lane):
            run.storage.write_json("lock/2.json", {"owner": "another"})
            for name in run.storage.list_files("journal"):
                run.storage.remove(name)

        class Slow(LocalLane):
            def start(self, work):
                super().start(work)
                take_over(self)

        with pytest.raises(DistillError, match=r"this job lost it|was removed"):
            ask(run, Slow)
    assert not any("in-flight" in name for name in run.storage.list_files("journal"))
