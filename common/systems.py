"""The systems that are compared, each as a function from test rows to its responses."""

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from common.data import TestRow
from common.errors import DistillError
from common.labeler import check_teacher, label_here, make_quota, open_teacher
from common.ledger import label_known, resume
from common.lock import hold_run
from common.prices import find_price
from common.progress import Progress
from common.records import PREDICTION_SCHEMA, Example, LabelRow
from common.replies import TRANSIENT_ERRORS
from common.settings import Settings
from common.storage import RunStorage
from common.student import (
    Response,
    encode_prompt,
    generate,
    load_adapter,
    load_student,
    load_tokenizer,
)
from common.tasks import Task

log = logging.getLogger(__name__)


def copy_input(rows: Sequence[TestRow]) -> list[Response]:
    """The texts as they are: what doing nothing would score."""
    return [Response(row.text.strip(), 0, 0.0) for row in rows]


def ask_teacher(
    settings: Settings, task: Task, storage: RunStorage, rows: Sequence[TestRow]
) -> list[Response]:
    """The teacher's answers, under the label rules; a row without a label answers nothing.

    Replies are journaled like the label job's, so that they are paid for once.
    """
    examples = [Example(row.id, row.text) for row in rows]
    answers = label_known(settings, task, storage, examples).rows
    if len(answers) < len(examples):
        with hold_run(storage, "evaluate") as lock, open_teacher(settings) as url:
            known = resume(settings, task, storage, examples, lock)
            missing = [example for example in examples if example.id not in known.rows]
            quota = make_quota(settings, known.cost_usd)
            check_teacher(settings, url)
            calls = len(missing) * settings.label.samples
            progress = Progress(calls, find_price(settings.teacher) is not None, "teacher")
            new = label_here(
                settings, task, url, missing, quota, lock, progress.show, known.replies
            )
            answers = known.rows | {row.id: row for row in new}
    ordered = [answers[example.id] for example in examples]
    _check_gaps(ordered)
    return [Response(a.label or "", a.completion_tokens, a.seconds, error=a.error) for a in ordered]


def _check_gaps(answers: list[LabelRow]) -> None:
    """Rows that the teacher refuses count as wrong; rows that did not reach it must be asked again.

    Raises:
        DistillError: there are rows of the second kind.
    """
    lost = [answer.error for answer in answers if answer.error in TRANSIENT_ERRORS]
    if lost:
        raise DistillError(
            f"{len(lost)} of {len(answers)} test rows have no answer of the teacher (the first: "
            f"{lost[0]}); run again to ask for them"
        )
    gaps = Counter(f"{a.status} ({a.error})" for a in answers if a.status != "ok")
    for kind, count in gaps.items():
        log.warning("evaluate: %d teacher rows are %s and count as wrong", count, kind)


def ask_students(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    adapter_files: list[str],
    rows: Sequence[TestRow],
) -> dict[str, list[Response]]:
    """The answers of the base and the distilled student: one model, its adapter off and on."""
    tokenizer = load_tokenizer(settings)
    prompts = [encode_prompt(tokenizer, task, row.text) for row in rows]
    limits = settings.evaluate.model_dump()
    with tempfile.TemporaryDirectory() as folder:
        storage.download(adapter_files, "adapter", Path(folder))
        model = load_adapter(load_student(settings), Path(folder))
    answers = {}
    with model.disable_adapter():
        started = time.monotonic()
        answers["base"] = generate(model, tokenizer, prompts, **limits)
        log.info("evaluate: base student, %.0f s", time.monotonic() - started)
    started = time.monotonic()
    answers["distilled"] = generate(model, tokenizer, prompts, **limits)
    log.info("evaluate: distilled student, %.0f s", time.monotonic() - started)
    return answers


def make_prediction_table(rows: Sequence[TestRow], responses: Sequence[Response]) -> pa.Table:
    """A system's predictions: `PREDICTION_SCHEMA` and the rows' groups."""
    records = [
        {
            "id": row.id,
            "text": row.text,
            "references": row.references,
            "prediction": response.text,
            "tokens": response.tokens,
            "seconds": response.seconds,
            "error": response.error,
        }
        for row, response in zip(rows, responses, strict=True)
    ]
    table = pa.Table.from_pylist(records, schema=PREDICTION_SCHEMA)
    for name in sorted({name for row in rows for name in row.groups}):
        column = pa.array([row.groups.get(name) for row in rows], pa.string())
        table = table.append_column(name, column)
    return table
