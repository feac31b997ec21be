"""Fills in the rows of the parts that are left open, and those that the teacher answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from common.outputs.answers import ANSWER_COLUMNS, Answer, get_answers, put_answers
from common.outputs.parts import REPEATED, OutputParts, run_all
from common.records import Example


@dataclass
class Unsure:
    """What the student leaves: rows that repeat a text, and texts that it is not sure of."""

    repeated: set[str] = field(default_factory=set)
    """Their ids."""
    texts: dict[str, Example] = field(default_factory=dict)
    """Examples by id."""


def find_unsure(parts: OutputParts, names: Sequence[str], threshold: float | None) -> Unsure:
    """Finds them in all parts; texts only with a `threshold`, the least confidence that is sure.

    Answers that are none, or that break a label rule, are never sure.
    """
    found = Unsure()
    columns = ["id", "text", "confidence", "answered_by", "error"]
    for table in parts.read_all(names, columns):
        found.repeated.update(table.filter(pc.equal(table["error"], REPEATED))["id"].to_pylist())
        if threshold is None:
            continue
        own = table.filter(pc.equal(table["answered_by"], "student"))
        is_sure = pc.and_(pc.greater_equal(own["confidence"], threshold), own["error"].is_null())
        unsure = own.filter(pc.invert(is_sure))
        pairs = zip(unsure["id"].to_pylist(), unsure["text"].to_pylist(), strict=True)
        found.texts.update({id: Example(id, text) for id, text in pairs})
    return found


def fill(
    parts: OutputParts,
    names: Sequence[str],
    unsure: Unsure,
    by_teacher: Mapping[str, str],
    check: Callable[[], None],
) -> None:
    """Writes the parts again that have open rows, or texts that the teacher has answered, by id.

    `check` is called before each, and may raise.
    """
    first = _find_first(parts, names, unsure.repeated) if unsure.repeated else {}

    def settle(id: str, answer: Answer) -> Answer:
        if answer["error"] == REPEATED:
            if id not in first:
                raise InputError(f"{parts.folder}: the source has changed meanwhile; run again")
            answer = first[id]
        if id in by_teacher and answer["answered_by"] == "student":
            taught = {"prediction": by_teacher[id], "answered_by": "teacher", "error": None}
            return answer | taught
        return answer

    def write(name: str) -> None:
        check()
        known = parts.read(name, ["id", "error"])
        ids, errors = known["id"].to_pylist(), known["error"].to_pylist()
        if REPEATED in errors or any(id in by_teacher for id in ids):
            rows = parts.read(name)
            answers = [settle(*pair) for pair in zip(ids, get_answers(rows), strict=True)]
            parts.write(name, put_answers(rows, answers), parts.filled)

    for _ in run_all(write, names):
        pass


def _find_first(parts: OutputParts, names: Sequence[str], repeated: set[str]) -> dict[str, Answer]:
    """The answers to the texts that are repeated, by id."""
    found: dict[str, Answer] = {}
    wanted = pa.array(sorted(repeated))
    for table in parts.read_all(names, ["id", *ANSWER_COLUMNS]):
        is_first = pc.and_(
            pc.is_in(table["id"], wanted), pc.not_equal(pc.fill_null(table["error"], ""), REPEATED)
        )
        rows = table.filter(is_first)
        found.update(zip(rows["id"].to_pylist(), get_answers(rows), strict=True))
    return found
