"""Writes the label rows, in the order of the examples, and checks how many have failed."""

import logging
from collections import Counter

import pyarrow as pa

from common.data.examples import Examples
from common.errors import DistillError, InputError
from common.records import count_by_status
from common.run.storage import RunStorage
from common.settings import Settings
from common.teacher.statuses import TRANSIENT_ERRORS

_MAX_FILTERED_SHARE = 0.5
"""Above this share of filtered rows, a rule is more likely wrong than the teacher."""
_PART_ROWS = 50_000

log = logging.getLogger(__name__)


def arrange_rows(examples: Examples, tables: list[pa.Table]) -> pa.Table:
    """All rows in the order of the examples. Raises a DistillError if rows are missing."""
    table = pa.concat_tables(tables)
    places = {id: place for place, id in enumerate(table["id"].to_pylist())}
    missing = [e for e in examples.rows if e.id not in places]
    if missing:
        raise DistillError(f"{len(missing)} of {len(examples.rows)} rows were lost; run again")
    return table.take([places[e.id] for e in examples.rows])


def write_parts(storage: RunStorage, folder: str, table: pa.Table) -> list[str]:
    """Writes the rows as the only files of a folder; returns their names."""
    names: list[str] = []
    for number, start in enumerate(range(0, table.num_rows, _PART_ROWS)):
        names.append(f"{folder}/part-{number:05}.parquet")
        storage.write_table(names[-1], table.slice(start, _PART_ROWS))
    storage.remove(*set(storage.list_files(folder)) - set(names))  # from a larger earlier attempt
    return names


def count_transient(table: pa.Table) -> int:
    """The rows that failed for a reason that passes."""
    return sum(error in TRANSIENT_ERRORS for error in table["error"].to_pylist())


def _find_commonest(table: pa.Table, status: str, column: str) -> tuple[str, str]:
    """The most frequent error of the rows with a status, and the first value of a column for it."""
    rows = table.select(["status", "error", column]).to_pylist()
    found = [(row["error"], row[column]) for row in rows if row["status"] == status]
    ((kind, _),) = Counter(error for error, _ in found).most_common(1)
    return kind, next(value for error, value in found if error == kind)


def check_failures(settings: Settings, table: pa.Table) -> None:
    """Warns if most rows were filtered.

    Raises:
        DistillError: more rows have failed than `label.max_failure_rate`.
        InputError: so they have, and running again will not help.
    """
    counts = count_by_status(table)
    if counts["filtered"] > _MAX_FILTERED_SHARE * table.num_rows:
        kind, response = _find_commonest(table, "filtered", "response")
        log.warning(
            "%d of %d rows filtered, mostly by %r, such as the response %r; to keep more, change "
            "the task's [label_rules], delete the folder labels, and run again: the replies are "
            "kept, and not paid for again",
            *(counts["filtered"], table.num_rows, kind, response[:100]),
        )
    if counts["failed"] / table.num_rows <= settings.label.max_failure_rate:
        return
    kind, message = _find_commonest(table, "failed", "message")
    text = (
        f"{counts['failed']} of {table.num_rows} rows failed, mostly by {kind!r}"
        f"{f' ({message})' if message else ''}; DISTILL_LABEL__MAX_FAILURE_RATE="
        f"{settings.label.max_failure_rate} allows fewer. The answers are kept"
    )
    if kind in TRANSIENT_ERRORS:
        raise DistillError(f"{text}: run again to ask for the rest")
    raise InputError(f"{text}; running again will not help")
