"""The jobs under attack: what each starts from, how far it is, and what it has to come to."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.run.storage import RunStorage
from tests.chaos.ledger import Ledger, write_examples
from tests.chaos.teachers import KEY
from tests.support.fake_teacher import FakeTeacher

CONCURRENCY = 16
_ROWS, _INPUTS, _TESTS, _PART_ROWS = 400, 240, 100, 12
_TIMES = ("seconds", "_per_second", "savings")
"""Endings of the metrics that tell how fast a run was."""


@dataclass(frozen=True)
class Work:
    """A job under attack.

    Attributes:
        name: the job's.
        after: the step whose undisturbed run it starts from; empty: from nothing.
        has_ray: whether Ray's processes take part.
        asks: whether a teacher is asked.
        measure: how far it is, from the teacher and the storage.
        moments: the least and the most of that at which a fault comes.
        compare: the differences to the undisturbed run.
    """

    name: str
    after: str
    has_ray: bool
    asks: bool
    measure: Callable[[FakeTeacher, RunStorage], int]
    moments: tuple[int, int]
    compare: Callable[[RunStorage, RunStorage], Iterable[str]]


def make_settings(folder: Path, teacher: FakeTeacher) -> dict[str, object]:
    """The settings of all jobs but the label job's own source; `folder` is that of the inputs."""
    inputs = folder / "inputs.jsonl"
    if not inputs.exists():
        texts = [f"the {i % 160} cat sleep in the house" for i in range(_INPUTS)]
        inputs.write_text("".join(json.dumps({"modified": t}) + "\n" for t in texts), "utf-8")
    return {
        "DATA__SOURCE": "builtin",
        "DATA__TRAIN_LIMIT": 240,
        "DATA__TEST_LIMIT": _TESTS,
        "TEACHER__BASE_URL": teacher.url,
        "TEACHER__MODEL": "big",
        "TEACHER__API_KEY": KEY,
        "TEACHER__TIMEOUT_SECONDS": 4,
        "TEACHER__MAX_CONCURRENCY": CONCURRENCY,
        "STUDENT__MODEL": "builtin",
        "TRAIN__PRESET": "builtin",
        "TRAIN__EPOCHS": 2,
        "TRAIN__HELD_OUT": 20,
        "TRAIN__EVALUATIONS": 2,
        "TRAIN__CHECKPOINT_SECONDS": 0.1,
        "EVALUATE__MAX_NEW_TOKENS": 24,
        "PREDICT__SOURCE": inputs,
        "PREDICT__PART_ROWS": _PART_ROWS,
        "PREDICT__CASCADE": 0.5,
    }


def make_label_settings(folder: Path) -> tuple[dict[str, object], list[str]]:
    """What the label job has of its own, and its texts."""
    source = folder / "examples.jsonl"
    texts = write_examples(source, _ROWS)
    return {
        "DATA__SOURCE": source,
        "DATA__TEXT_COLUMN": "text",
        "DATA__TRAIN_LIMIT": 0,
        "DATA__TEST_LIMIT": 0,
    }, texts


def choose_moment(work: Work, choice: random.Random, least: float = 0, most: float = 1) -> int:
    """A progress between two shares of the way."""
    first, last = work.moments
    return choice.randint(
        round(first + least * (last - first)), round(first + most * (last - first))
    )


def _count(storage: RunStorage, folder: str, ending: str) -> int:
    return sum(name.endswith(ending) for name in storage.list_files(folder))


def _measure_label(teacher: FakeTeacher, storage: RunStorage) -> int:
    return len(teacher.answered)


def _measure_train(teacher: FakeTeacher, storage: RunStorage) -> int:
    """Updates in a checkpoint."""
    names = storage.list_files("checkpoints")
    return max((int(n.split("/")[1]) for n in names if n.endswith("manifest.json")), default=0)


def _measure_evaluate(teacher: FakeTeacher, storage: RunStorage) -> int:
    return len(teacher.answered) + 10 * _count(storage, "predictions", ".parquet")


def _measure_predict(teacher: FakeTeacher, storage: RunStorage) -> int:
    return len(teacher.answered) + 10 * _count(storage, "outputs/inputs", ".parquet")


def _compare_nothing(storage: RunStorage, whole: RunStorage) -> Iterable[str]:
    """Labels differ by call; the ledger has them."""
    return []


def _compare_adapters(storage: RunStorage, whole: RunStorage) -> Iterable[str]:
    name = "adapter/adapter_model.safetensors"
    if storage.read_bytes(name) != whole.read_bytes(name):
        yield "the adapter's weights are not those of an undisturbed run"
    if storage.list_files("checkpoints"):
        yield "checkpoints are left"


def _compare_metrics(storage: RunStorage, whole: RunStorage) -> Iterable[str]:
    now, then = (_without_times(s.read_json("metrics.json")) for s in (storage, whole))
    if now != then:
        yield f"metrics.json is {now}; undisturbed it is {then}"
    columns = ["id", "text", "prediction", "error"]
    yield from _compare_tables(storage, whole, "predictions", columns)


def _compare_outputs(storage: RunStorage, whole: RunStorage) -> Iterable[str]:
    yield from _compare_tables(storage, whole, "outputs/inputs")
    rows = _read_all(storage, "outputs/inputs").num_rows
    if rows != _INPUTS:
        yield f"{rows} rows for {_INPUTS} inputs"


def _compare_tables(
    storage: RunStorage, whole: RunStorage, folder: str, columns: list[str] | None = None
) -> Iterable[str]:
    names = [[n for n in s.list_files(folder) if n.endswith(".parquet")] for s in (storage, whole)]
    if names[0] != names[1]:
        yield f"{folder} has {names[0]}; undisturbed it has {names[1]}"
        return
    for name in names[0]:
        tables = [s.read_table(name) for s in (storage, whole)]
        now, then = (
            t.select([c for c in columns or t.column_names if c in t.column_names]) for t in tables
        )
        if not now.equals(then):
            pairs = zip(now.to_pylist(), then.to_pylist(), strict=False)
            first = next((pair for pair in pairs if pair[0] != pair[1]), now.num_rows)
            yield f"{name} differs from that of an undisturbed run: {first}"


def _read_all(storage: RunStorage, folder: str) -> pa.Table:
    names = [name for name in storage.list_files(folder) if name.endswith(".parquet")]
    return pa.concat_tables([storage.read_table(name) for name in names])


def _without_times(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: _without_times(v) for k, v in value.items() if not k.endswith(_TIMES)}


WORKS = {
    work.name: work
    for work in (
        Work("label", "", True, True, _measure_label, (10, 300), _compare_nothing),
        Work("predict", "evaluate", True, True, _measure_predict, (10, 240), _compare_outputs),
        Work("train", "label", False, False, _measure_train, (1, 20), _compare_adapters),
        Work("evaluate", "train", False, True, _measure_evaluate, (5, 140), _compare_metrics),
    )
}
"""In the order of the columns."""

__all__ = ["CONCURRENCY", "WORKS", "Ledger", "Work"]
