"""Asks the teacher for a few thousand texts, in this process; the journal keeps paid replies."""

from dataclasses import replace

from common.data.examples import Examples
from common.labels.label_row import Outcome
from common.labels.lanes.local import LocalLane
from common.labels.resume import resume
from common.labels.session import Session
from common.records import LabelRow
from common.run.lock import RunLock
from common.run.run import Run


def ask_teacher(
    run: Run,
    lock: RunLock,
    examples: Examples,
    name: str = "teacher",
    spent_usd: float | None = None,
) -> dict[str, LabelRow]:
    """The teacher's rows by id; those whose replies are paid for cost nothing.

    `name` is for the progress; `spent_usd`, if given, is what counts for the cost cap so far.
    Raises a DistillError, see `Session.ask`.
    """
    answers: dict[str, LabelRow] = {}

    def keep(outcome: Outcome) -> None:
        answers[outcome.row.id] = outcome.row

    known = resume(run, examples, keep)
    if spent_usd is not None:
        known = replace(known, cost_usd=spent_usd)
    if len(known.missing):
        tables, _ = Session(run, lock, known).ask(LocalLane, name)
        rows = (LabelRow(**row) for table in tables for row in table.to_pylist())
        answers |= {row.id: row for row in rows}
    return answers
