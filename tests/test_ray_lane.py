"""When a lane over Ray gives up on actors whose processes die, and when it waits."""

from types import SimpleNamespace

import pytest
import ray

from common.errors import DistillError
from common.labels.lanes.ray import lane as module
from support.clock import FakeTime


@pytest.fixture
def lane(monkeypatch):
    """A lane on a fake clock, with two actors; `lane.cpus` are free."""
    time = FakeTime()
    monkeypatch.setattr(module.time, "monotonic", time.clock)
    lane = module.RayLane()
    lane._max_crashes = 20
    lane.time, lane.cpus = time, 1.0
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": lane.cpus})
    return lane


def look(lane, seconds, workers=0, lost_workers=0):
    """So many seconds pass, and the lane looks four times a second."""
    for _ in range(4 * seconds):
        lane.time.sleep(0.25)
        lane._check_workers(SimpleNamespace(workers=workers, lost_workers=lost_workers))


def test_actors_that_never_come_up_end_the_job(lane):
    look(lane, 59)
    with pytest.raises(
        DistillError, match=r"label actors crash repeatedly \(0 crashes, none has run for 60 s"
    ):
        look(lane, 10)


def test_actors_that_wait_for_a_cpu_are_waited_for(lane):
    lane.cpus = 0.0
    look(lane, 600)
    lane.cpus = 1.0
    look(lane, 50)  # the cluster has grown: they start
    look(lane, 100, workers=2)


def test_actors_that_die_in_mid_work_end_the_job(lane):
    look(lane, 100, workers=1, lost_workers=20)
    with pytest.raises(DistillError, match=r"crash repeatedly \(21 crashes, too many"):
        look(lane, 1, workers=1, lost_workers=21)
