"""Labels texts in this process."""

from collections.abc import Iterable

from common.labels.lane import Lane
from common.labels.session import Session
from common.records import Example, LabelRow, hash_text
from common.run.lock import hold_run
from common.run.run import Run
from common.run.steps import LabelSummary
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.task import Task


def label_texts(
    settings: Settings, texts: Iterable[str], lane: type[Lane], task: Task | None = None
) -> tuple[dict[str, LabelRow], LabelSummary]:
    """The rows by text, with those of earlier sessions, and the calls' figures."""
    run = Run(settings, task or Task(name="echo"), RunStorage(settings))
    examples = [Example(hash_text(text), text) for text in texts]
    with hold_run(run.storage, "label") as lock:
        session = Session(run, lock, examples)
        tables, figures = session.ask(lane, "labels")
    new = [LabelRow(**row) for table in tables for row in table.to_pylist()]
    rows = session.known.rows | {row.id: row for row in new}
    return {rows[example.id].text: rows[example.id] for example in examples}, figures
