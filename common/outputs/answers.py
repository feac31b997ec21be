"""A student's answers as rows of the outputs."""

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any

import pyarrow as pa

from common.evaluation.confidence import Calibration, gather_signals, multiply_probabilities
from common.outputs.inputs import OUTPUT_SCHEMA
from common.outputs.parts import REPEATED
from common.records import Response
from common.tasks.rules import LabelRules, apply_rules

Answer = dict[str, Any]
"""The columns of a row but `id` and `text`."""
Ask = Callable[[Sequence[str]], Sequence[Response]]
ANSWER_COLUMNS = OUTPUT_SCHEMA.names[2:]
_OPEN: Answer = {"prediction": None, "confidence": None, "answered_by": None, "error": REPEATED}
_EMPTY: Answer = {"prediction": "", "confidence": None, "answered_by": None, "error": "empty"}


def answer_block(
    rows: pa.Table,
    is_new: Sequence[bool],
    ask: Ask,
    rules: LabelRules,
    calibration: Calibration | None,
) -> pa.Table:
    """The part for a block: its new texts answered, rows with other texts left open.

    Args:
        rows: `id`, `text` and the kept columns.
        is_new: which rows have a text that no earlier row has.
        ask: the student.
        rules: the task's.
        calibration: of its confidence; None: that is the probability of the whole answer.
    """
    ids, texts = rows["id"].to_pylist(), rows["text"].to_pylist()
    new = dict(compress(zip(ids, texts, strict=True), is_new))
    answers = {id: _EMPTY for id, text in new.items() if not text.strip()}
    asked = {id: text for id, text in new.items() if id not in answers}
    responses = ask(list(asked.values())) if asked else []
    signals = gather_signals(responses)
    confidence = (
        calibration.estimate(signals) if calibration else multiply_probabilities(signals)
    ).tolist()
    for (id, text), response, sure in zip(asked.items(), responses, confidence, strict=True):
        prediction, rule = apply_rules(text, response.text, rules)
        error = response.error or ("length" if response.is_cut else rule)
        answers[id] = {
            "prediction": prediction,
            "confidence": sure,
            "answered_by": "student",
            "error": error,
        }
    return put_answers(rows, [answers.get(id, _OPEN) for id in ids])


def put_answers(rows: pa.Table, answers: Sequence[Answer]) -> pa.Table:
    """The rows with these answers, in the order of `OUTPUT_SCHEMA` and the kept columns."""
    columns = {name: rows[name] for name in ("id", "text")}
    for name in ANSWER_COLUMNS:
        kind = OUTPUT_SCHEMA.field(name).type
        columns[name] = pa.array([answer[name] for answer in answers], kind)
    kept = [name for name in rows.column_names if name not in OUTPUT_SCHEMA.names]
    return pa.table(columns | {name: rows[name] for name in kept})


def get_answers(rows: pa.Table) -> Iterable[Answer]:
    """The answers of a part's rows."""
    found: list[Answer] = rows.select(ANSWER_COLUMNS).to_pylist()
    return found
