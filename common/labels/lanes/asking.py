"""Asks the teacher for a few thousand texts, in this process; the journal keeps paid replies."""

from collections.abc import Sequence
from dataclasses import replace

from common.data.examples import Examples
from common.errors import DistillError
from common.labels.label_row import Outcome
from common.labels.lanes.local import LocalLane
from common.labels.resume import resume
from common.labels.session import Session
from common.records import LabelRow
from common.run.lock import RunLock
from common.run.run import Run
from common.teacher.statuses import TRANSIENT_ERRORS


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


def check_lost(run: Run, rows: Sequence[LabelRow]) -> None:
    """Raises a DistillError if more rows than allowed have failed for reasons that may pass."""
    lost = [row.error for row in rows if row.error in TRANSIENT_ERRORS]
    allowed = run.settings.label.max_failure_rate
    if len(lost) > allowed * len(rows):
        raise DistillError(
            f"{len(lost)} of {len(rows)} texts have no answer of the teacher (first: {lost[0]}); "
            f"run again to ask for them, or raise DISTILL_LABEL__MAX_FAILURE_RATE={allowed:g}"
        )
