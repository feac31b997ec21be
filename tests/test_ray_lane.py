"""When a lane over Ray gives up on actors whose processes die, and when it waits."""

from types import SimpleNamespace

import pytest
import ray

from common.errors import DistillError, SettingsError
from common.labels.lanes.ray import lane as module
from common.labels.lanes.ray import memory
from support.clock import FakeTime


@pytest.fixture
def lane(monkeypatch):
    """A lane on a fake clock, with two actors; `lane.cpus` are free."""
    time = FakeTime()
    monkeypatch.setattr(module.time, "monotonic", time.clock)
    monkeypatch.setattr(memory, "get_used_memory", lambda: 0)  # whatever else runs here
    lane = module.RayLane()
    lane._max_crashes, lane._actor_cpus = 6, 0.1
    lane.time, lane.cpus = time, 1.0
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": lane.cpus})
    return lane


def look(lane, seconds, workers=0, lost_workers=0, answered=0):
    """So many seconds pass, and the lane looks four times a second."""
    totals = SimpleNamespace(answered=answered)
    snapshot = SimpleNamespace(workers=workers, lost_workers=lost_workers, totals=totals)
    for _ in range(4 * seconds):
        lane.time.sleep(0.25)
        lane._check_workers(snapshot)


def test_actors_that_never_come_up_end_the_job(lane):
    look(lane, 299)
    with pytest.raises(
        DistillError, match=r"label actors crash repeatedly \(0 crashes, none has run for 300 s"
    ):
        look(lane, 10)


def test_actors_that_wait_for_a_cpu_are_waited_for(lane):
    lane.cpus = 0.0
    look(lane, 600)
    lane.cpus = 1.0
    look(lane, 50)  # the cluster has grown: they start
    look(lane, 100, workers=2)


def test_actors_that_die_in_a_row_end_the_job(lane):
    look(lane, 100, workers=1, lost_workers=6)
    with pytest.raises(DistillError, match=r"crash repeatedly \(7 crashes, in a row"):
        look(lane, 1, workers=1, lost_workers=7)


def test_actors_that_die_now_and_then_while_others_answer_end_nothing(lane):
    for hour in range(1, 30):
        look(lane, 10, workers=1, lost_workers=hour, answered=hour)


RAY_TEXT = """The actor died: Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1, ID: ab) was {used}GB used / {limit}GB limit (0.970000)
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/x"""


def raise_in_lane(text):
    with module._converting_errors():
        raise ray.exceptions.RayError(text)


def test_a_container_s_memory_that_is_used_up_is_a_setting():
    with pytest.raises(SettingsError) as end:
        raise_in_lane(RAY_TEXT.format(used="0.97", limit="1.00"))
    assert str(end.value) == (
        "Ray's processes were killed, as the memory is used up (0.97 of 1.00 GiB); raise the "
        "container's limit (of a pod: resources.limits.memory), or lower DISTILL_LABEL__ACTORS"
    )


def test_a_machine_s_memory_that_is_used_up_may_be_free_later():
    with pytest.raises(DistillError, match=r"used up .*; free memory or lower DISTILL") as end:
        raise_in_lane(RAY_TEXT.format(used="99999", limit="100000"))
    assert end.value.exit_code == 1


def test_other_errors_of_ray_are_not_of_the_memory():
    with pytest.raises(DistillError, match=r"^Ray: RayError: lost; run again"):
        raise_in_lane("lost")


def test_actors_that_die_where_the_memory_is_full_name_the_limit(lane, monkeypatch):
    monkeypatch.setattr(memory, "get_system_memory", lambda: 2**30)
    monkeypatch.setattr(memory, "get_used_memory", lambda: 0.95 * 2**30)
    look(lane, 1, workers=1)
    monkeypatch.setattr(memory, "get_used_memory", lambda: 0.2 * 2**30)
    with pytest.raises(SettingsError, match=r"used up \(0\.95 of 1\.00 GiB\); raise the container"):
        look(lane, 1, workers=1, lost_workers=7)
