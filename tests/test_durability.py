"""What the label job survives, and what that costs; tests/chaos is the long form."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp import web

from support.commands import ROOT, Job, run_job, start_job
from support.fake_teacher import FakeTeacher, make_body, refuse, running_teacher
from tests.chaos.moments import Chaos
from tests.chaos.teachers import Faults

CONCURRENCY = 32


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "examples.jsonl"
    lines = [json.dumps({"text": f"This is the sentence of number {i}."}) for i in range(400)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def describe(source: Path, teacher: FakeTeacher) -> dict[str, object]:
    return {
        "DATA__SOURCE": source,
        "DATA__TEXT_COLUMN": "text",
        "TEACHER__BASE_URL": teacher.url,
        "TEACHER__MODEL": "big",
        "TEACHER__MAX_CONCURRENCY": CONCURRENCY,
    }


def read_labels(folder: Path) -> list[dict]:
    files = sorted((folder / "runs/default/labels").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def wait_for_answers(job: Job, teacher: FakeTeacher, count: int) -> None:
    while len(teacher.answered) < count:
        assert job.poll() is None, job.communicate()
        time.sleep(0.005)


def test_kills_cost_no_more_than_what_was_in_flight(tmp_path):
    kinds = ["actor", "driver"]  # and "tree" below
    with running_teacher(Faults(seed=3, per_minute=6000)) as teacher:
        teacher.seconds = 0.05
        chaos = Chaos(tmp_path, 500, kinds, teacher, seed=3, at_start=False)
        chaos.run()
    assert chaos.problems == [], chaos.describe()
    assert [moment.kind for moment in chaos.moments] == kinds


def test_actors_that_die_again_and_again_end_the_job(tmp_path, source):
    with (
        running_teacher(lambda text, call: text) as teacher,
        start_job("tests.support.impatient_label", tmp_path, **describe(source, teacher)) as job,
    ):
        deadline = time.monotonic() + 120
        while job.poll() is None and time.monotonic() < deadline:
            for pid, command in job.find_processes().items():
                if "ray::MapWorker" in command:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        job.kill()
        _, errors = job.communicate()
        assert job.returncode == 1, errors
        assert "crash repeatedly" in errors.splitlines()[-1]
        assert "Traceback" not in errors


@pytest.mark.whole
def test_kills_on_an_object_store_cost_no_more_than_what_was_in_flight(tmp_path, bucket):
    with running_teacher(Faults(seed=5, per_minute=6000)) as teacher:
        teacher.seconds = 0.05
        root = {"STORAGE__ROOT": f"{bucket}/some/runs"}
        chaos = Chaos(tmp_path, 400, ["tree"], teacher, seed=8, at_start=False, **root)
        chaos.run()
    assert chaos.problems == [], chaos.describe()
    assert len(chaos.moments) == 1


def test_a_stopped_run_with_samples_goes_on_without_paying_twice(tmp_path, source):
    """Its story: a second job stands back, SIGTERM drains, a rerun ends it, new rules are free."""

    def answer(text, call):
        number = int(re.findall(r"\d+", text)[0])
        return text.upper() if number % 2 or call % 3 else f"{text} Or so?"

    with running_teacher(answer) as teacher:
        settings = describe(source, teacher) | {"LABEL__SAMPLES": 3, "TEACHER__TEMPERATURE": 0.7}
        teacher.seconds = 0.3
        with start_job("label", tmp_path, **settings) as job:
            wait_for_answers(job, teacher, 1)
            second = run_job("label", tmp_path, **settings)
            assert second.returncode == 1
            assert f"process {job.pid} " in second.stderr.splitlines()[-1]

            wait_for_answers(job, teacher, 150)
            job.send_signal(signal.SIGTERM)
            stopped = time.monotonic()
            _, errors = job.communicate(timeout=60)
            assert job.returncode == 143, errors
            assert "Traceback" not in errors
        assert time.monotonic() - stopped < 15
        assert max(teacher.began) - stopped < 1  # no call after the actors have heard of it
        assert read_labels(tmp_path) == []

        teacher.seconds = 0.02
        done = run_job("label", tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        assert set(teacher.paid.values()) == {3}
        assert len(teacher.bodies) == 3 * 400
        labels = read_labels(tmp_path)
        assert len({row["id"] for row in labels}) == len(labels) == 400
        assert {row["samples"] for row in labels} == {3}

        task = (ROOT / "common/tasks/gec.toml").read_text("utf-8")
        rule = 'reject_patterns = ["[A-Z]{4}", '
        (tmp_path / "own.toml").write_text(task.replace("reject_patterns = [", rule), "utf-8")
        settings["TASK"] = tmp_path / "own.toml"
        shutil.rmtree(tmp_path / "runs/default/labels")
        again = run_job("label", tmp_path, **settings)
        assert again.returncode == 0, again.stderr
        assert len(teacher.bodies) == 3 * 400
        assert {row["status"] for row in read_labels(tmp_path)} == {"ok", "filtered"}


def test_a_refusal_in_the_middle_stops_the_job_at_once(tmp_path, source):
    refused: list[float] = []

    def answer(text, call):
        if call <= 200:
            return text.upper()
        refused.append(time.monotonic())
        return refuse(429, "You exceeded your current quota", "insufficient_quota")

    with running_teacher(answer) as teacher:
        teacher.seconds = 0.1
        done = run_job("label", tmp_path, **describe(source, teacher))
        ended = time.monotonic()
        assert done.returncode == 4, done.stderr
        assert "429 You exceeded your current quota" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert sum(began > refused[0] for began in teacher.began) <= CONCURRENCY
        assert ended - refused[0] < 5


@pytest.mark.whole
def test_the_cap_holds_by_the_server_s_own_count_and_can_be_raised(tmp_path, source):
    (tmp_path / "prices.toml").write_text('[[price]]\nmodel = "big"\ninput = 50\noutput = 100\n')
    spent_usd = 0.0

    def answer(text, call):
        nonlocal spent_usd
        content = "".join(message["content"] for message in teacher.bodies[call - 1]["messages"])
        tokens = len(content.encode()) // 3, [20, 60, 512][call % 3]
        spent_usd += (tokens[0] * 50 + tokens[1] * 100) / 1e6
        if call % 50 == 0:
            return web.Response(text='{"choices": [', content_type="application/json")
        if call % 50 == 1:
            return TimeoutError()
        body = make_body(text.upper())
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
        return web.json_response(body)

    with running_teacher(answer) as teacher:
        teacher.seconds = 0.05
        settings = describe(source, teacher) | {
            "TEACHER__PRICES": tmp_path / "prices.toml",
            "TEACHER__TIMEOUT_SECONDS": 2,
        }
        with start_job("label", tmp_path, **settings, LABEL__MAX_COST_USD=9) as job:
            while len(teacher.bodies) < 60:
                assert job.poll() is None, job.communicate()
                time.sleep(0.005)
            job.kill_all()
        stopped = run_job("label", tmp_path, **settings, LABEL__MAX_COST_USD=9)
        assert stopped.returncode == 5, stopped.stderr
        assert re.search(r"up to \d+ calls may be paid for and lost", stopped.stderr)
        assert "DISTILL_LABEL__MAX_COST_USD=9 is reached" in stopped.stderr.splitlines()[-1]
        assert 3 < spent_usd <= 9
        done = run_job("label", tmp_path, **settings, LABEL__MAX_COST_USD=80)
        assert done.returncode == 0, done.stderr
        assert len(read_labels(tmp_path)) == 400
        # The run's cost has the killed job's in it, whose lost calls count as the dearest.
        manifest = json.loads((tmp_path / "runs/default/labels/_manifest.json").read_text())
        summary = manifest["summary"]
        assert summary["cost_usd"] < spent_usd <= summary["run_cost_usd"] < 2 * spent_usd
