"""The test rows to evaluate on: only they have reference answers."""

import hashlib
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.examples import ID_TYPE, iterate_texts, read_ids, strip_prefix
from common.data.place import find_place
from common.data.sources import read_tables
from common.errors import InputError
from common.records import get_rows, hash_text
from common.settings import Settings
from common.tasks.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
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


def warn_without_test_rows(settings: Settings, task: Task) -> None:
    """Warns before labels are paid for that the evaluation will fail."""
    text = settings.data.text_column or task.columns.text
    reference = settings.data.reference_column or task.columns.reference
    try:
        next(read_tables(settings, "test", [text, reference], optional=[]))
    except InputError as error:
        log.warning("the evaluation will be missing its test rows: %s", error)


def load_test_rows(settings: Settings, task: Task) -> TestRows:
    """The test rows with their references, without those that the task counts as seen in train.

    Raises:
        InputError: see `load_examples`; or the test split or its reference column is missing.
    """
    name = settings.data.reference_column or task.columns.reference
    text_name = settings.data.text_column or task.columns.text
    rows: dict[str, TestRow] = {}
    count = unusable = 0
    for row in _iterate_rows(settings, [text_name, name], task.columns.groups):
        count += 1
        text = strip_prefix(row[text_name], settings, task)
        references = _read_references(row[name])
        if not text.strip() or not references:
            unusable += 1
            continue
        groups = {g: str(row[g]) for g in task.columns.groups if row.get(g) is not None}
        first = rows.setdefault(hash_text(text), TestRow(hash_text(text), text, [], groups))
        first.references.extend(r for r in references if r not in first.references)
    if not rows:
        raise InputError(f"the test split has no row with both {text_name!r} and {name!r}")
    leaked = _find_leaked(settings, task, list(rows.values()))
    kept = {id: row for id, row in rows.items() if id not in leaked}
    if not kept:
        place = find_place(settings, "test")
        raise place.refuse(f"has {len(rows)} test rows, all of which are also in train")
    chosen = set(sorted(kept)[: settings.data.test_limit or None])
    chosen_rows = [row for id, row in kept.items() if id in chosen]
    duplicates = count - unusable - len(rows)
    return TestRows(chosen_rows, duplicates, len(rows) - len(kept), unusable)


def _iterate_rows(
    settings: Settings, required: list[str], optional: list[str]
) -> Iterator[dict[str, Any]]:
    for table in read_tables(settings, "test", required, optional):
        yield from get_rows(table)


def _find_leaked(settings: Settings, task: Task, rows: list[TestRow]) -> set[str]:
    """The ids of the rows that the task counts as seen in train."""
    seen = _hash_seen(settings, task)
    if not len(seen):
        return set()
    with_references = "reference" in task.unseen
    compared = [[row.text, *row.references] if with_references else [row.text] for row in rows]
    is_seen = np.isin(_hash_all(text for texts in compared for text in texts), seen)
    owners = [row.id for row, texts in zip(rows, compared, strict=True) for _ in texts]
    return set(compress(owners, is_seen))


def _hash_seen(settings: Settings, task: Task) -> NDArray[np.bytes_]:
    """The hashes of what the task counts as seen, of type `ID_TYPE`."""
    hashes = [np.empty(0, ID_TYPE)]
    for texts in iterate_texts(settings, task) if "text" in task.unseen else ():
        hashes.append(_hash_all(texts))
    if "reference" in task.unseen:
        name = settings.data.reference_column or task.columns.reference
        for table in read_tables(settings, "train", required=[], optional=[name]):
            values = table[name].to_pylist() if name in table.column_names else []
            hashes.append(_hash_all(a for value in values for a in _read_references(value)))
    return np.concatenate(hashes)


def _hash_all(texts: Iterable[str]) -> NDArray[np.bytes_]:
    """The hashes of texts but for spaces, line ends and Unicode's normal forms."""
    folded = (" ".join(unicodedata.normalize("NFC", text).split()) for text in texts)
    contents = (text.encode("utf-8", "surrogatepass") for text in folded)
    return read_ids(b"".join(hashlib.sha256(content).digest()[:16] for content in contents))


def _read_references(value: str | int | list[str | None] | None) -> list[str]:
    """The references that are not empty, stripped like labels."""
    if isinstance(value, int):  # a class number, or a boolean, written as in JSON
        value = str(value).lower()
    values = [value] if isinstance(value, str) else value or []
    return [answer.strip() for answer in values if answer and answer.strip()]
