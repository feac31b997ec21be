"""The examples to label and the test rows to evaluate on.

Only `load_test_rows`, for the evaluate job, reads reference answers.
"""

import logging
import unicodedata
from dataclasses import dataclass, field

from common.data.place import find_place
from common.data.sources import read_split
from common.errors import InputError
from common.records import Example, hash_text
from common.settings import Settings
from common.tasks.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """The examples to label, without duplicates, in the order of the source."""

    rows: list[Example]
    duplicates: int


@dataclass(frozen=True)
class TestRow:
    """A held-out text with its reference answers and the values of the task's group columns."""

    __test__ = False  # not a pytest class

    id: str
    text: str
    references: list[str]
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TestRows:
    """The test rows, one per text with all of its references.

    Without `leaked` rows, which are also in train but for spaces and Unicode's normal forms, and
    without `unusable` ones, which lack text or reference.
    """

    __test__ = False

    rows: list[TestRow]
    duplicates: int
    leaked: int
    unusable: int = 0


def load_examples(settings: Settings, task: Task) -> Examples:
    """The train texts without duplicates, at most `data.train_limit`.

    A limit keeps the lowest ids: the sample does not depend on the file's order, and a higher limit
    only adds rows.

    Raises:
        InputError: the source is missing, unreadable or empty, or lacks the text column.
    """
    texts = _read_texts(settings, task)
    distinct = {hash_text(text): text for text in texts}
    chosen = _lowest(list(distinct), settings.data.train_limit)
    rows = [Example(id, text) for id, text in distinct.items() if id in chosen]
    return Examples(rows, duplicates=len(texts) - len(distinct))


def warn_without_test_rows(settings: Settings, task: Task) -> None:
    """Warns before labels are paid for that the evaluation will fail."""
    text = settings.data.text_column or task.columns.text
    reference = settings.data.reference_column or task.columns.reference
    try:
        read_split(settings, "test", [text, reference], optional=[])
    except InputError as error:
        log.warning("the evaluation will be missing its test rows: %s", error)


def load_test_rows(settings: Settings, task: Task) -> TestRows:
    """The test rows with their references, without those that the task counts as seen in train.

    Raises:
        InputError: see `load_examples`; or the test split or its reference column is missing.
    """
    seen = set(map(_fold, _read_texts(settings, task))) if "text" in task.unseen else set()
    name = settings.data.reference_column or task.columns.reference
    if "reference" in task.unseen:
        train = read_split(settings, "train", required=[], optional=[name])
        seen |= {_fold(a) for row in train for a in _read_references(row.get(name))}
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
        if not seen.isdisjoint(map(_fold, compared)):
            leaked.add(hash_text(text))
        groups = {g: str(row[g]) for g in task.columns.groups if row.get(g) is not None}
        first = rows.setdefault(hash_text(text), TestRow(hash_text(text), text, [], groups))
        first.references.extend(r for r in references if r not in first.references)
    if not rows:
        raise InputError(f"the test split has no row with both {text_name!r} and {name!r}")
    kept = {id: row for id, row in rows.items() if id not in leaked}
    if not kept:
        place = find_place(settings.data, "test")
        raise place.refuse(f"has {len(rows)} test rows, all of which are also in train")
    chosen = _lowest(list(kept), settings.data.test_limit)
    chosen_rows = [row for id, row in kept.items() if id in chosen]
    duplicates = len(raw) - unusable - len(rows)
    return TestRows(chosen_rows, duplicates, len(rows) - len(kept), unusable)


def _read_texts(settings: Settings, task: Task) -> list[str]:
    name = settings.data.text_column or task.columns.text
    if name == (settings.data.reference_column or task.columns.reference):
        raise InputError(
            f"DISTILL_DATA__TEXT_COLUMN={name!r} is also the column of the reference answers: the "
            "teacher would be shown them"
        )
    rows = read_split(settings, "train", [name], optional=[])
    return [_strip_prefix(row[name], settings, task) for row in rows]


def _strip_prefix(text: object, settings: Settings, task: Task) -> str:
    prefix = settings.data.text_prefix
    if not isinstance(text, str | None):
        raise InputError(
            f"the text column has {text!r}, not a string: set DISTILL_DATA__TEXT_COLUMN"
        )
    return (text or "").removeprefix(task.columns.text_prefix if prefix is None else prefix)


def _fold(text: str) -> str:
    """What texts have in common that differ in spaces, line ends or Unicode's normal forms."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _lowest(ids: list[str], limit: int) -> set[str]:
    return set(sorted(ids)[: limit or None])


def _read_references(value: str | int | list[str | None] | None) -> list[str]:
    """The references that are not empty, stripped like labels."""
    if isinstance(value, int):  # a class number, or a boolean, written as in JSON
        value = str(value).lower()
    values = [value] if isinstance(value, str) else value or []
    return [answer.strip() for answer in values if answer and answer.strip()]
