"""The label job as a user starts it, its inputs and folders."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq

from common.tasks.task import load_task
from tests.benchmarks.measure import (
    BUILD,
    Run,
    Teacher,
    run_command,
)

_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "PIP_INDEX_URL")


def label(
    folder: Path,
    teacher: Teacher,
    rows: int,
    options: argparse.Namespace,
    sample: bool = False,
    environment: dict[str, str] | None = None,
    **settings: object,
) -> Run:
    """The label job as a user starts it; `settings` are named without DISTILL_."""
    source = folder / "texts.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps({"text": t}) + "\n" for t in make_texts(rows)))
    settings = {
        "STORAGE__ROOT": folder / "runs",
        "DATA__SOURCE": source,
        "DATA__TEXT_COLUMN": "text",
        "DATA__TRAIN_LIMIT": 0,
        "TEACHER__BASE_URL": teacher.url,
        "TEACHER__MODEL": "big",
        "LABEL__ACTORS": 2,
    } | settings
    names = {f"DISTILL_{name}": str(value) for name, value in settings.items()}
    paths = {"PYTHONPATH": str(options.tree), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "jobs.label"]
    run = run_command(
        command, folder, inherit() | paths | names | (environment or {}), sample=sample
    )
    if run.code == 0:
        files = sorted((folder / "runs/default/labels").glob("*.parquet"))
        count = sum(pq.read_metadata(file).num_rows for file in files)
        assert count == rows, f"{count} rows of {rows}, see {folder}"
    return run


def make_texts(rows: int) -> list[str]:
    """Distinct sentences of nearly the same length, which is also that of the server's answer."""
    return [
        f"Sentence number {i} have a mistake or two in it, as the other sentences has."
        for i in range(rows)
    ]


def write_requests(rows: int) -> Path:
    """The requests that the job makes of these texts, for the other clients."""
    task, path = load_task("gec"), make_folder("requests") / "requests.jsonl"
    common = {"model": "big", "max_tokens": 512, "temperature": 0.0}
    bodies = (common | {"messages": task.make_messages(text)} for text in make_texts(rows))
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies), "utf-8")
    return path


def make_folder(name: str) -> Path:
    """An empty folder for one run."""
    folder = BUILD / "bench" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def inherit() -> dict[str, str]:
    """What a command gets of the environment: no settings of the user's."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return kept | {"PYTHONUNBUFFERED": "1"}


def check(run: Run, name: str) -> None:
    if run.code != 0:
        raise SystemExit(f"{name} ended with {run.code}:\n{run.output[-3_000:]}")
