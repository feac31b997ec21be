"""What millions of rows cost the driver: workers that take no time have written the parts."""

import argparse
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.data.examples import load_examples
from common.environment import load_settings
from common.labels.counts import LabelCounts
from common.labels.parts import Parts
from common.records import LABEL_SCHEMA, Example, hash_content
from common.run.run import Run, open_run
from common.teacher.journal import encode_line
from common.teacher.replies import Reply
from jobs.label import make_fingerprint
from tests.benchmarks.job import make_folder
from tests.benchmarks.measure import print_table

_PART_ROWS = 10_000
_BODY = json.dumps(
    {
        "choices": [{"message": {"content": "She goes to school."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 50, "completion_tokens": 20},
    }
)


def measure_scale(options: argparse.Namespace) -> dict[str, Any]:
    """By size: seconds and peak RSS of the driver's steps, each in a process of its own."""
    figures: dict[str, Any] = {}
    for size in options.sizes:
        folder = make_folder("scale")
        _write_source(folder / "texts.jsonl", size)
        found: dict[str, Any] = {}
        for step in (_load, _write_60_percent, _resume, _write_rest, _finish, _rerun):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found |= pool.apply(step, (folder,))
        files = list((folder / "runs").rglob("*.parquet"))
        found["objects"] = len(files)
        found["MiB of objects"] = round(sum(f.stat().st_size for f in files) / 2**20)
        figures[str(size)] = found
    print_table(
        "The driver's steps by rows, with parts that take no time",
        [{"rows": size, **found} for size, found in figures.items()],
    )
    return figures


def _write_source(path: Path, size: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(size):
            file.write(f'{{"text": "The sentence with the number {number} have no end in it."}}\n')


def _open(folder: Path) -> Run:
    os.environ |= {
        "DISTILL_STORAGE__ROOT": str(folder / "runs"),
        "DISTILL_DATA__SOURCE": str(folder / "texts.jsonl"),
        "DISTILL_DATA__TEXT_COLUMN": "text",
        "DISTILL_DATA__TRAIN_LIMIT": "0",
        "DISTILL_TEACHER__MODEL": "big",
    }
    return open_run(load_settings())


def _note(name: str, started: float) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    seconds = time.monotonic() - started
    return {f"{name} s": round(seconds, 1), f"{name} MiB": round(peak)}


def _load(folder: Path) -> dict[str, Any]:
    run, started = _open(folder), time.monotonic()
    load_examples(run.settings, run.task)
    return _note("load", started)


def _write_60_percent(folder: Path) -> dict[str, Any]:
    return _write(folder, 0.0, 0.6)


def _write_rest(folder: Path) -> dict[str, Any]:
    return _write(folder, 0.6, 1.0)


def _write(folder: Path, first: float, last: float) -> dict[str, Any]:
    """The parts of some of the rows, as workers would have written them."""
    run = _open(folder)
    examples = load_examples(run.settings, run.task)
    parts = Parts(run, hash_content(make_fingerprint(run, examples)))
    waiting: list[Example] = []
    start, end, count, number = first * len(examples), last * len(examples), 0, 0
    for group in examples.read():
        waiting += [e for i, e in enumerate(group, count) if start <= i < end]
        count += len(group)
        while len(waiting) >= _PART_ROWS or (waiting and count == len(examples)):
            rows, waiting = waiting[:_PART_ROWS], waiting[_PART_ROWS:]
            _write_part(run, parts, f"{first:g}-{number:06}", rows)
            number += 1
    return {}


def _write_part(run: Run, parts: Parts, name: str, rows: list[Example]) -> None:
    columns = {"id": [row.id for row in rows], "text": [row.text for row in rows]}
    length = len(rows)
    constant = {"status": "ok", "label": "a label", "samples": 1, "prompt_tokens": 50}
    arrays: dict[str, Any] = columns | {n: [v] * length for n, v in constant.items()}
    for field in LABEL_SCHEMA:
        arrays.setdefault(field.name, pa.nulls(length, field.type))
    key = {b"distill.fingerprint": parts.fingerprint}
    labels = pa.table(arrays, LABEL_SCHEMA.with_metadata(key))
    run.storage.write_table(f"labels/part-{name}.parquet", labels)
    replies = [
        [encode_line(Reply("0" * 64, 200, _BODY, 1, 0.1, 600, 512, example_id=row.id)).decode()]
        for row in rows
    ]
    told = json.dumps({"usd": 0.0, "by": hash_content([repr(None), 512])})
    sealed = pa.table(columns | {"replies": replies}).replace_schema_metadata(
        {b"distill.cost": told}
    )
    run.storage.write_table(f"journal/sealed-{name}.parquet", sealed)


def _resume(folder: Path) -> dict[str, Any]:
    run, started = _open(folder), time.monotonic()
    examples = load_examples(run.settings, run.task)
    parts = Parts(run, hash_content(make_fingerprint(run, examples)))
    known = parts.resume(examples)
    assert abs(len(known.missing) - 0.4 * len(examples)) < 2
    return _note("resume", started)


def _finish(folder: Path) -> dict[str, Any]:
    run, started = _open(folder), time.monotonic()
    examples = load_examples(run.settings, run.task)
    parts = Parts(run, hash_content(make_fingerprint(run, examples)))
    files = parts.finish(examples)
    assert LabelCounts(run.storage, files).rows == len(examples)
    return _note("finish", started)


def _rerun(folder: Path) -> dict[str, Any]:
    """What a rerun of the finished run takes."""
    run, started = _open(folder), time.monotonic()
    make_fingerprint(run, load_examples(run.settings, run.task))
    return _note("rerun", started)
