import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.errors import DistillError, StoppedError
from common.run.lock import RunLock, hold_run
from common.run.storage import RunStorage
from support.clock import FakeTime
from support.failing_store import running_failing_store


def make_lock(storage, time=None):
    time = time or FakeTime()
    return RunLock(storage, "label", time.clock, time.sleep)


def test_a_run_that_is_deleted_is_told_of_as_lost(settings):
    storage = RunStorage(settings())
    lock = make_lock(storage)
    lock.acquire()
    shutil.rmtree(Path(storage.path()))
    lost = r"runs/default was deleted while this job ran: all that it held .* is lost"
    lock.beat()
    with pytest.raises(DistillError, match=lost):
        lock.check()
    storage.write_bytes("journal/a.jsonl", b"x")  # by a worker
    lock.beat()
    with pytest.raises(DistillError, match=lost):
        lock.check()


@pytest.mark.parametrize("error", [DistillError("a part is missing"), FileNotFoundError("a part")])
def test_what_fails_since_the_run_was_deleted_says_so(settings, error):
    storage = RunStorage(settings())
    with (
        pytest.raises(DistillError, match=r"was deleted while this job ran"),
        hold_run(storage, "label"),
    ):
        shutil.rmtree(Path(storage.path()))
        raise error


@pytest.fixture
def fast(monkeypatch):
    """Heartbeats that a test need not wait for."""
    monkeypatch.setattr("common.run.lock._HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr("common.run.lock._POLL_SECONDS", 0.01)


def test_a_run_is_held_and_given_back(storage):
    with hold_run(storage, "label") as lock:
        assert storage.list_files("") == ["lock/1.json"]
        owner = storage.read_json("lock/1.json")
        assert (owner["pid"], owner["job"]) == (os.getpid(), "label")
        lock.check()
        assert lock.is_held
    assert storage.list_files("") == []


@pytest.mark.parametrize("error", [ValueError("no input"), StoppedError(15)])
def test_a_job_that_fails_leaves_no_trace(settings, tmp_path, error):
    with pytest.raises(type(error)), hold_run(RunStorage(settings()), "label"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_the_job_wrote_stays(storage):
    with hold_run(storage, "label"):
        storage.write_bytes("journal/a.jsonl", b"x")
    assert storage.list_files("") == ["journal/a.jsonl"]
    if storage.is_local:
        assert [path.name for path in Path(storage.path()).iterdir()] == ["journal"]


def test_a_second_job_stops_and_names_the_first(storage):
    first = make_lock(storage)
    first.acquire()
    time = FakeTime(first.beat)
    with pytest.raises(DistillError) as caught:
        make_lock(storage, time).acquire()
    message = str(caught.value)
    assert message.startswith(storage.url)
    assert f"process {os.getpid()} on " in message
    assert "another DISTILL_RUN" in message
    assert type(caught.value) is DistillError
    first.check()
    first.release()
    assert storage.list_files("") == []


def test_a_job_may_wait_for_the_end_of_one_at_work(storage, caplog):
    first = make_lock(storage)
    first.acquire()
    time = FakeTime()

    def go_on():
        (first.beat if time.seconds < 1020 else first.release)()

    time.at_sleep = go_on
    second = make_lock(storage, time)
    with caplog.at_level("INFO"):
        second.acquire(wait_seconds=60)
    assert 1020 <= time.seconds < 1022
    assert caplog.text.count("waiting for it, at most 60 s") == 1
    second.check()
    third = make_lock(storage, FakeTime(second.beat))
    with pytest.raises(DistillError, match="at work"):
        third.acquire(wait_seconds=10)
    second.release()


def test_threads_beat(storage, fast, caplog):
    with hold_run(storage, "label") as lock:
        with pytest.raises(DistillError, match="is at work"), hold_run(storage, "evaluate"):
            pass
        lock.check()
    assert storage.list_files("") == []


def test_a_job_follows_one_that_ends_while_it_watches(storage):
    first = make_lock(storage)
    first.acquire()
    second = make_lock(storage, FakeTime(first.release))
    second.acquire()
    second.beat()
    second.check()
    assert storage.list_files("") == ["lock/1.json"]


def test_a_dead_owner_is_followed_and_learns_it_if_it_lives(storage, caplog):
    caplog.set_level("INFO")
    first, time = make_lock(storage), FakeTime()
    first.acquire()
    second = make_lock(storage, time)
    second.acquire()
    assert 8 <= time.seconds - 1000 < 9
    assert "checking whether it is still at work" in caplog.text
    assert storage.list_files("") == ["lock/2.json"]
    first.check()
    first.beat()
    with pytest.raises(DistillError, match=r"this job lost it: .*run again later"):
        first.check()
    assert not first.is_held
    first.release()
    second.beat()
    second.check()
    second.release()
    assert storage.list_files("") == []


def test_an_owner_whose_lock_was_removed_or_replaced_stops(storage):
    lock = make_lock(storage)
    lock.acquire()
    storage.remove("lock/1.json")
    lock.beat()
    with pytest.raises(DistillError, match="was removed"):
        lock.check()
    lock = make_lock(storage)
    lock.acquire()
    storage.write_bytes("lock/1.json", b'{"owner": "another", "pid": 7}')
    lock.beat()
    with pytest.raises(DistillError, match="process 7"):
        lock.check()
    lock.release()
    assert storage.list_files("") == ["lock/1.json"]


def test_one_of_many_follows_a_dead_owner(storage, fast, monkeypatch):
    monkeypatch.setattr("common.run.lock._STALE_SECONDS", 1.0)
    storage.write_bytes("lock/1.json", b"{}")
    taken, refused = [], []
    end = threading.Event()

    def run():
        try:
            with hold_run(storage, "label") as lock:
                taken.append(lock)
                end.wait(10)
                lock.check()
        except DistillError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(refused) < 3:
        time.sleep(0.01)
        assert len(taken) <= 1
    end.set()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert all("is at work" in message for message in refused)
    assert storage.list_files("") == []


def test_a_job_that_looks_while_another_takes_over_does_not_take_the_run_too(storage, monkeypatch):
    """It sees the dead owner's file in the list, and finds it gone when it reads it."""
    storage.write_bytes("lock/1.json", b"{}")
    first, second = make_lock(storage), make_lock(storage, FakeTime(lambda: first.beat()))
    read = storage.read_bytes

    def read_late(name):
        monkeypatch.setattr(storage, "read_bytes", read)
        first.acquire()
        return read(name)

    monkeypatch.setattr(storage, "read_bytes", read_late)
    with pytest.raises(DistillError, match="is at work"):
        second.acquire()
    first.beat()
    first.check()
    second.release()
    assert storage.list_files("") == ["lock/2.json"]


@pytest.mark.parametrize("owner", [{"in_flight": 32, "lost": 0}, {"in_flight": 0, "lost": 2}])
def test_what_a_lock_of_version_0_1_says_of_calls_in_flight_is_kept(storage, owner):
    storage.write_json("lock/1.json", {"owner": "0123"} | owner)
    lock = make_lock(storage)
    lock.acquire()
    lock.release()
    assert storage.list_files("") == ["journal/in-flight-0123.json"]
    assert storage.read_json("journal/in-flight-0123.json") == {"owner": "0123"} | owner


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x", "machine": 3}'])
def test_a_lock_that_cannot_be_read_is_watched_too(storage, content):
    storage.write_bytes("lock/1.json", content)
    time = FakeTime()
    lock = make_lock(storage, time)
    lock.acquire()
    assert time.seconds - 1000 >= 8
    lock.release()
    assert storage.list_files("") == []


def test_the_lock_of_a_killed_process_is_soon_taken(settings):
    storage = RunStorage(settings())
    code = """
import time
from common.environment import load_settings
from common.run.lock import hold_run
from common.run.storage import RunStorage
with hold_run(RunStorage(load_settings()), "label"):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    ) as process:
        assert process.stdout.readline() == b"held\n"
        process.send_signal(signal.SIGKILL)
    assert json.loads(storage.read_bytes("lock/1.json"))["pid"] == process.pid
    time = FakeTime()
    make_lock(storage, time).acquire()
    assert 2 <= time.seconds - 1000 <= 3


def test_a_failing_store_makes_the_owner_unsure_but_not_stop(
    bucket, s3_endpoint, monkeypatch, settings
):
    with running_failing_store(bucket, s3_endpoint, monkeypatch) as store:
        storage = RunStorage(settings(STORAGE__ROOT=f"{bucket}/runs"))
        time = FakeTime()
        lock = make_lock(storage, time)
        lock.acquire()
        for method in ("GET", "PUT"):
            store.fail(1000, 503, [method])
            time.seconds += 7
            lock.beat()
            lock.check()
            assert not lock.is_held
            assert "SlowDown" in lock.storage_error
            store.fail(0, 503)
            lock.beat()
            assert lock.is_held
            assert lock.storage_error is None
        store.fail(1000, 503)
        time.seconds += 601
        lock.beat()
        with pytest.raises(DistillError, match=r"not be refreshed for 601 s.*SlowDown"):
            lock.check()
        lock.release()  # warns
        store.fail(0, 503)
        lock.release()
        assert storage.list_files("") == []


def test_a_signal_while_the_lock_is_made_leaves_nothing(storage, monkeypatch):
    create = storage.create_bytes

    def interrupt(*arguments):
        create(*arguments)
        raise StoppedError(15)

    monkeypatch.setattr(storage, "create_bytes", interrupt)
    with pytest.raises(StoppedError), hold_run(storage, "label"):
        pass
    assert storage.list_files("") == []
