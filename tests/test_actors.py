import asyncio
import pickle
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from common.errors import DistillError, InputError, SettingsError, StorageError
from common.labels.label_row import Outcome
from common.labels.lanes.ray.actors import Desk, LabelActor
from common.labels.parts import Parts
from common.records import EXAMPLE_SCHEMA, LabelRow
from common.run.lock import hold_run
from common.run.run import PackedRun, Run
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.task import Task
from common.teacher.replies import Reply
from common.teacher.sealed import list_sealed
from support.commands import ROOT

SECRET = "sk-very-secret"


class Keeper:
    """Takes what an actor tells the job's quota."""

    def __init__(self) -> None:
        self.failures: list[DistillError] = []
        self.stop = SimpleNamespace(remote=self._stop)
        self.has_started_all = SimpleNamespace(remote=self._has_started_all)

    async def _stop(self, failure: DistillError) -> None:
        self.failures.append(failure)

    async def _has_started_all(self) -> bool:
        return False


def label(settings: Settings, *needed: str) -> list[DistillError]:
    keeper = Keeper()
    packed = PackedRun(settings, Task(name="any"), None)
    actor = LabelActor(packed, "http://localhost:1", keeper, {}, needed, ("labels", "session"))
    table = asyncio.run(actor(EXAMPLE_SCHEMA.empty_table()))
    assert not table.num_rows
    return keeper.failures


def test_workers_are_sent_no_key(settings: Callable[..., Settings]) -> None:
    headers = f'{{"x-key": "{SECRET}"}}'
    own = settings(
        TEACHER__API_KEY=SECRET,
        TEACHER__EXTRA_HEADERS=headers,
        TEACHER__MODEL="m",
        STORAGE__ROOT="runs",
    )
    run = Run(own, Task(name="any"), RunStorage(own))
    packed = run.pack()
    assert SECRET.encode() not in pickle.dumps(packed)
    assert run.settings.teacher.api_key.get_secret_value() == SECRET
    assert packed.settings.storage.root == own.storage.absolute_root != "runs"


def test_a_node_without_the_key_stops_the_job(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings(TEACHER__API_KEY=SECRET, TEACHER__MODEL="m")
    monkeypatch.delenv("DISTILL_TEACHER__API_KEY")
    with hold_run(RunStorage(own), "label"):
        (failure,) = label(own.for_workers(), "api_key")
    assert isinstance(failure, SettingsError)
    assert "DISTILL_TEACHER__API_KEY is not set on this node" in str(failure)


def test_a_node_without_the_jobs_folder_stops_the_job(settings: Callable[..., Settings]) -> None:
    (failure,) = label(settings(TEACHER__MODEL="m").for_workers())
    assert isinstance(failure, InputError)
    assert "DISTILL_STORAGE__ROOT" in str(failure)
    assert "s3://" in str(failure)


def test_a_part_is_written_once_though_old_journal_files_stay(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its replies are sealed twice, and count twice."""
    own = settings(TEACHER__MODEL="m")
    storage = RunStorage(own)
    run = Run(own, Task(name="any"), storage)
    reply = Reply("key", 200, "{}", 1, 0.1, example_id="0" * 32)
    outcome = Outcome(LabelRow("0" * 32, "text", "ok", "label"), [reply])
    forgotten: list[Outcome] = []

    async def start_file(ended: list[Outcome]) -> list[str]:
        return ["journal/old.jsonl"]

    def fail(*names: str) -> None:
        raise StorageError("it is away", is_transient=True)

    worker = SimpleNamespace(start_file=start_file, forget=forgotten.extend)
    desk = Desk(worker, Parts(run, "labels"))  # type: ignore[arg-type]
    desk.parts.add(outcome)
    monkeypatch.setattr(storage, "remove", fail)
    asyncio.run(desk.write_part())
    asyncio.run(desk.write_part())
    assert forgotten == [outcome]
    assert len(list_sealed(storage)) == 1


@pytest.mark.parametrize("place", ["_open", "_label"])
@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (MemoryError(), SettingsError, "the memory does not suffice (MemoryError); give the nodes"),
        (ValueError("a\nb"), DistillError, "a label actor failed (ValueError: a); run again (on"),
    ],
)
def test_what_an_actor_fails_with_ends_the_job(
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
    kind: type[DistillError],
    told: str,
) -> None:
    async def fail(*_: object) -> None:
        raise error

    async def open_desk(*_: object) -> object:
        return SimpleNamespace(blocks=0, parts=SimpleNamespace(is_full=False))

    monkeypatch.setattr(LabelActor, "_open", open_desk)
    monkeypatch.setattr(LabelActor, place, fail)
    (failure,) = label(settings(TEACHER__MODEL="m").for_workers())
    assert type(failure) is kind
    assert str(failure).startswith(told)


ALONE = """
import asyncio, re
from common.labels.lanes.ray import actors

actors._FROZEN_SECONDS, actors._BEAT_SECONDS, actors._ANSWER_SECONDS = 0.5, 0.05, 0.1

async def stand_still():
    guard = asyncio.create_task(actors.end_if_frozen())
    await asyncio.sleep(1)
    print("alive", flush=True)
    re.match("(a+)+b", "a" * 40)  # holds the interpreter's lock

async def wait_for_an_answer():
    await actors.hear(asyncio.sleep(0.01))
    print("alive", flush=True)
    await actors.hear(asyncio.get_running_loop().create_future())

asyncio.run({}())
"""


@pytest.mark.parametrize(
    ("what", "told"),
    [("stand_still", "stand_still"), ("wait_for_an_answer", "the quota has not answered")],
)
def test_an_actor_that_cannot_go_on_ends(what: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(what)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "alive\n")
    assert told in done.stderr
