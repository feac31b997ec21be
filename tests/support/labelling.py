"""Labels texts in this process."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.data.examples import Examples
from common.labels.label_row import Outcome
from common.labels.lane import Lane
from common.labels.resume import Known, read_known, resume
from common.labels.session import Session
from common.records import Example, LabelRow, hash_text
from common.run.lock import hold_run
from common.run.run import Run, open_run
from common.run.steps import LabelSummary
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.task import Task
from common.teacher.journal import iterate_journal
from common.teacher.replies import Reply, read_answer
from common.teacher.sealed import list_sealed


def open_priced_run(settings: Callable[..., Settings], folder: Path, task: Task) -> Run:
    """A run whose teacher costs $1 for a million prompt tokens, and $10 for those of responses."""
    prices = folder / "prices.toml"
    prices.write_text('[[price]]\nmodel = "big"\ninput = 1.0\noutput = 10.0\n', "utf-8")
    own = settings(TEACHER__MODEL="big", TEACHER__PRICES=str(prices), TEACHER__MAX_TOKENS="100")
    return replace(open_run(own), task=task)


def label_texts(
    settings: Settings, texts: Iterable[str], lane: type[Lane], task: Task | None = None
) -> tuple[dict[str, LabelRow], LabelSummary]:
    """The rows by text, with those of earlier sessions, and the calls' figures."""
    run = Run(settings, task or Task(name="echo"), RunStorage(settings))
    examples = [Example(hash_text(text), text) for text in texts]
    with hold_run(run.storage, "label") as lock:
        known, rows = resume_rows(run, examples)
        tables, figures = Session(run, lock, known).ask(lane, "labels")
    rows |= {row["id"]: LabelRow(**row) for table in tables for row in table.to_pylist()}
    return {rows[example.id].text: rows[example.id] for example in examples}, figures


def resume_rows(run: Run, examples: Iterable[Example]) -> tuple[Known, dict[str, LabelRow]]:
    """What is left to ask, and the known rows by id; charges crashed sessions."""
    rows: dict[str, LabelRow] = {}

    def keep(outcome: Outcome) -> None:
        rows[outcome.row.id] = outcome.row

    return resume(run, Examples.of(examples), keep), rows


def read_rows(run: Run, examples: Iterable[Example]) -> tuple[Known, dict[str, LabelRow]]:
    """As `resume_rows`, without charging."""
    rows: dict[str, LabelRow] = {}

    def keep(outcome: Outcome) -> None:
        rows[outcome.row.id] = outcome.row

    return read_known(run, Examples.of(examples), keep), rows


def list_examples(examples: Examples) -> list[Example]:
    """All of them, in the order of the source."""
    found = {example.id: example for group in examples.read() for example in group}
    return [found[id] for id in examples.list_ids()]


def read_replies(storage: RunStorage) -> list[Reply]:
    """All replies, of the journal and sealed."""
    replies = list(iterate_journal(storage))
    for file in list_sealed(storage):
        chosen = np.ones(len(file.ids), bool)
        replies += [reply for row in file.read(chosen) for reply in row.replies]
    return replies


def read_answers(storage: RunStorage) -> dict[str, Reply]:
    """The usable replies by key."""
    return {r.key: r for r in read_replies(storage) if read_answer(r).is_final}
