"""A few attacks of `make chaos`, and that its checks find what is wrong."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.records import LabelRow, hash_text, make_label_table
from common.run.storage import RunStorage
from tests.chaos.cell import Cell, Result
from tests.chaos.faults import make_faults
from tests.chaos.ledger import Ledger
from tests.chaos.matrix import attack, choose_faults, format_matrix
from tests.chaos.processes import Started, check_log
from tests.chaos.teachers import KEY, expect_status
from tests.chaos.works import WORKS
from tests.chaos.world import World, open_world
from tests.support.commands import start_job


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as found:
        yield found


@pytest.mark.whole
@pytest.mark.parametrize(("job", "fault"), [("label", "full disk"), ("train", "kill -9 tree")])
def test_nothing_is_lost(world: World, job: str, fault: str) -> None:
    result = attack(world, WORKS[job], make_faults()[fault], seed=1)
    assert result.problems == []


def test_the_matrix_has_a_row_for_each_fault() -> None:
    results = [
        Result("train", "kill", 3.2),
        Result("train", "raylet", excuse="no Ray"),
        Result("label", "kill", 12.0, problems=["lost"]),
        Result("label", "raylet", 10.0),
    ]
    assert format_matrix(results).splitlines() == [
        "| fault  | train        | label       |",
        "| ---    | ---          | ---         |",
        "| kill   | ok 3 s       | FAILED 12 s |",
        "| raylet | n.a.: no Ray | ok 10 s     |",
    ]


def test_faults_are_chosen_by_words() -> None:
    assert [fault.name for fault in choose_faults(["sigterm", "503"])] == [
        "SIGTERM",
        "S3: 503 slow down",
    ]
    assert len(choose_faults([])) == len(make_faults())
    excuses = {n: f.excuse(WORKS["train"]) for n, f in make_faults().items()}
    assert {excuse for excuse in excuses.values() if excuse} == {"no Ray", "no teacher"}


@pytest.mark.parametrize(
    ("code", "log", "found"),
    [
        (1, "error: it fails; run again", ""),
        (-9, "anything", ""),
        (1, "it fails", "without a line"),
        (1, "Traceback (most recent call last):\nerror: x", "a trace"),
        (0, "Fatal Python error: Aborted", "a trace"),
    ],
)
def test_an_end_is_told_in_a_line(code: int, log: str, found: str) -> None:
    problems = check_log(code, log)
    assert [found in problem for problem in problems] == [True] * bool(found)


def test_a_hang_and_what_is_left_are_found(tmp_path: Path) -> None:
    started = Started(start_job("http.server", tmp_path, "0"))
    assert started.end(1.0)[2] == ["after 1 s the job was still there"]
    assert started.wait_for_processes() == []


def test_lost_and_changed_rows_are_found(settings, tmp_path: Path) -> None:
    storage = RunStorage(settings(TEACHER__MODEL="m", LABEL__SAMPLES=1))
    texts = [f"number {i}" for i in range(3)]
    rows = [LabelRow(hash_text(t), t, expect_status(t), f"Number {t[-1]}.") for t in texts]

    def find(*found: LabelRow) -> str:
        ledger = Ledger(settings(), texts, storage)
        storage.write_table("labels/part-0.parquet", make_label_table(found))
        ledger.note()
        ledger.check()
        return "; ".join(ledger.problems)

    assert "2 rows for 3 inputs" in find(*rows[:2])
    assert "an id stands in two rows" in find(*rows, rows[0])
    assert "rows by status" in find(*rows[:2], replace(rows[2], status="failed"))
    assert "is not the journal's: None" in find(*rows)


def test_a_disturbed_run_that_differs_is_found(settings) -> None:
    own = RunStorage(settings(RUN="one"))
    whole = RunStorage(settings(RUN="two"))
    name = "adapter/adapter_model.safetensors"
    for storage, content in ((own, b"a"), (whole, b"b")):
        storage.write_bytes(name, content)
        storage.write_json("metrics.json", {"x": content.decode(), "rows_per_second": 1})
        row = LabelRow("1", content.decode(), "ok", "x")
        storage.write_table("outputs/inputs/part-0.parquet", make_label_table([row]))
    found = {job: list(WORKS[job].compare(own, whole)) for job in ("train", "evaluate", "predict")}
    assert "weights" in found["train"][0]
    assert "metrics.json is" in found["evaluate"][0]
    assert "part-0.parquet differs" in found["predict"][0]
    own.write_json("metrics.json", {"x": "b", "rows_per_second": 2})
    assert list(WORKS["evaluate"].compare(own, whole)) == []


def test_the_key_is_found_wherever_it_stands(world: World) -> None:
    cell = Cell(world, WORKS["label"], make_faults()["SIGTERM"], seed=0)
    cell.storage = world.open_storage(cell.folder / "runs")
    assert list(cell.find_key()) == []
    row = LabelRow("1", f"a text with {KEY}", "ok", "x")
    cell.storage.write_table("labels/part-0.parquet", make_label_table([row]))
    (cell.folder / "t/ray.log").write_text(json.dumps({"key": KEY}))
    assert sorted(cell.find_key()) == ["runs/default/labels/part-0.parquet", "t/ray.log"]
    shutil.rmtree(cell.folder)
