"""The examples to label, and the rows to evaluate on.

The label and the train job see ids and texts only; reference answers are read by `load_test_rows`,
for the evaluate job.
"""

import logging
from dataclasses import dataclass, field

from common.data.sources import name_source, read_split
from common.errors import InputError
from common.records import Example, hash_text
from common.settings import Settings
from common.tasks.model import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """The examples to label, distinct, in the order of their source."""

    rows: list[Example]
    duplicates: int


@dataclass(frozen=True)
class TestRow:
    """A held-out text with its reference answers and the values of the task's group columns."""

    __test__ = False  # not a test of pytest's

    id: str
    text: str
    references: list[str]
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TestRows:
    """The test rows, distinct.

    Dropped were `leaked` rows, which also stood in train, and `unusable` ones, without text or
    reference. Rows of one text are one row with all of their references.
    """

    __test__ = False

    rows: list[TestRow]
    duplicates: int
    leaked: int
    unusable: int = 0


def load_examples(settings: Settings, task: Task) -> Examples:
    """The train texts, distinct, at most `data.train_limit` of them.

    A limit takes the rows whose ids are the lowest: a sample that does not depend on the order of
    the file, and that a higher limit only adds to.

    Raises:
        InputError: the source is missing, unreadable, empty, or lacks the text column.
    """
    texts = _read_texts(settings, task)
    distinct = {hash_text(text): text for text in texts}
    chosen = _lowest(list(distinct), settings.data.train_limit)
    rows = [Example(id, text) for id, text in distinct.items() if id in chosen]
    return Examples(rows, duplicates=len(texts) - len(distinct))


def warn_without_test_rows(settings: Settings, task: Task) -> None:
    """Labels can be made without test rows; whoever pays for them should know that."""
    text = settings.data.text_column or task.columns.text
    reference = settings.data.reference_column or task.columns.reference
    try:
        read_split(settings, "test", [text, reference], optional=[])
    except InputError as error:
        log.warning("the evaluation will be missing its test rows: %s", error)


def load_test_rows(settings: Settings, task: Task) -> TestRows:
    """The test rows with their references, less those that the task says were seen in train.

    Raises:
        InputError: as `load_examples`; also, where there is no test split or no reference column.
    """
    seen = set(_read_texts(settings, task)) if "text" in task.unseen else set()
    name = settings.data.reference_column or task.columns.reference
    if "reference" in task.unseen:
        train = read_split(settings, "train", required=[], optional=[name])
        seen |= {answer for row in train for answer in _read_references(row.get(name))}
    text_name = settings.data.text_column or task.columns.text
    raw = read_split(settings, "test", [text_name, name], optional=task.columns.groups)
    rows: dict[str, TestRow] = {}
    leaked: set[str] = set()
    unusable = 0
    for row in raw:
        text = _strip_prefix(row[text_name], settings, task)
        references = _read_references(row[name])
        if not text.strip() or not references:
            unusable += 1
            continue
        compared = [text, *references] if "reference" in task.unseen else [text]
        if not seen.isdisjoint(compared):
            leaked.add(hash_text(text))
        groups = {g: str(row[g]) for g in task.columns.groups if row.get(g) is not None}
        first = rows.setdefault(hash_text(text), TestRow(hash_text(text), text, [], groups))
        first.references.extend(r for r in references if r not in first.references)
    if not rows:
        raise InputError(f"the test split has no row with both {text_name!r} and {name!r}")
    kept = {id: row for id, row in rows.items() if id not in leaked}
    if not kept:
        variable, source = name_source(settings, "test")
        raise InputError(f"{variable}={source!r}: all {len(rows)} test rows also stand in train")
    chosen = _lowest(list(kept), settings.data.test_limit)
    chosen_rows = [row for id, row in kept.items() if id in chosen]
    duplicates = len(raw) - unusable - len(rows)
    return TestRows(chosen_rows, duplicates, len(rows) - len(kept), unusable)


def _read_texts(settings: Settings, task: Task) -> list[str]:
    name = settings.data.text_column or task.columns.text
    if name == (settings.data.reference_column or task.columns.reference):
        raise InputError(
            f"DISTILL_DATA__TEXT_COLUMN={name!r} is the column of the reference answers, too: the "
            "teacher would be shown them"
        )
    rows = read_split(settings, "train", [name], optional=[])
    return [_strip_prefix(row[name], settings, task) for row in rows]


def _strip_prefix(text: object, settings: Settings, task: Task) -> str:
    prefix = settings.data.text_prefix
    if not isinstance(text, str | None):
        raise InputError(
            f"the column of the texts holds {text!r}, and not a string: set "
            "DISTILL_DATA__TEXT_COLUMN"
        )
    return (text or "").removeprefix(task.columns.text_prefix if prefix is None else prefix)


def _lowest(ids: list[str], limit: int) -> set[str]:
    return set(sorted(ids)[: limit or None])


def _read_references(value: str | int | list[str | None] | None) -> list[str]:
    """One reference or several, without white space around them, as labels are; none is empty."""
    if isinstance(value, int):  # a class; a truth value as JSON has it
        value = str(value).lower()
    values = [value] if isinstance(value, str) else value or []
    return [answer.strip() for answer in values if answer and answer.strip()]
