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
