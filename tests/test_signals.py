"""Signals at a job's start, and what a driver that is killed leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from support.commands import ROOT, start_job
from support.fake_teacher import running_teacher

STOPPED = "error: stopped by signal {}; run the same command to resume\n"
IN_RAY_S_START = """
import os, signal
import ray._private.worker as worker
from common.command import run_job
from common.labels.lanes.ray.cluster import end_ray, start_ray
from common.signals import deferring_signals

connect = worker.connect

def connect_and_signal(*arguments, **options):
    connect(*arguments, **options)
    os.kill(os.getpid(), signal.SIGTERM)

def main(settings):
    worker.connect = connect_and_signal
    with deferring_signals():
        try:
            start_ray()
        finally:
            end_ray(can_shut_down=True)

run_job(main, "A job.", ())
"""


def is_caught(pid: int, number: int) -> bool:
    """Whether a process has a handler of a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_job_loads_ends_it_with_the_usual_line(tmp_path, number):
    with start_job("report", tmp_path) as job:
        while not is_caught(job.pid, signal.SIGTERM):  # Python itself catches SIGINT before
            assert job.poll() is None
        time.sleep(0.05)
        job.send_signal(number)
        _, errors = job.communicate(timeout=60)
    assert (job.returncode, errors) == (128 + number, STOPPED.format(int(number)))


def test_a_signal_while_ray_starts_ends_the_job_with_the_usual_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IN_RAY_S_START],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 143, done.stderr
    assert done.stderr.endswith(STOPPED.format(15))
    assert "***" not in done.stderr


def find_children(pid: int) -> set[int]:
    """All below a process. (Agents hide their environment, by which `find_processes` looks.)"""
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def test_nothing_outlives_a_driver_that_is_killed_not_even_what_cannot_end_itself(tmp_path):
    lines = (json.dumps({"text": f"This is sentence {i}."}) for i in range(200))
    Path(tmp_path, "a.jsonl").write_text("\n".join(lines))
    with running_teacher(lambda text, call: text) as teacher:
        teacher.seconds = 0.5
        about = {"DATA__SOURCE": "a.jsonl", "DATA__TEXT_COLUMN": "text", "LABEL__ACTORS": 1}
        about |= {"TEACHER__BASE_URL": teacher.url, "TEACHER__MODEL": "big"}
        with start_job("label", tmp_path, **about) as job:
            while len(teacher.answered) < 10:
                assert job.poll() is None, job.communicate()
                time.sleep(0.01)
            for pid, command in job.find_processes().items():
                if "LabelActor" in command or "QuotaKeeper" in command:
                    os.kill(pid, signal.SIGSTOP)  # as one that computes, and hears nothing
            started = find_children(job.pid)
            assert len(started) >= 6, started  # gcs, raylet, two agents, keeper, actor
            job.kill()
            deadline = time.monotonic() + 5
            while (left := started & set(psutil.pids())) and time.monotonic() < deadline:
                time.sleep(0.1)
            job.kill_all()
            job.communicate()
        assert not left
