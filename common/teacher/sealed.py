"""The sealed replies: journal/sealed-<name>.parquet, a row for each example that has ended.

They are the journal's, compressed: raw, as they came, with the example's id and text, so that other
label rules cost nothing. A file's metadata has the dollars for its replies.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import TypedDict

from common.data.examples import pack_ids
from common.prices.prices import Price
from common.records import Example, check_kind, hash_content
from common.run.storage import RunStorage
from common.teacher.costs import find_cost
from common.teacher.journal import (
    FOLDER,
    decode_line,
    encode_line,
    filter_journal,
    iterate_journal,
)
from common.teacher.replies import Reply, read_answer

_PREFIX = f"{FOLDER}/sealed-"
_COST = b"distill.cost"
_SCHEMA = pa.schema({"id": pa.string(), "text": pa.string(), "replies": pa.list_(pa.string())})


class _Cost(TypedDict):
    usd: float
    by: str


@dataclass(frozen=True)
class Sealed:
    """An example with all replies that it has cost in a session."""

    example: Example
    replies: Sequence[Reply]


def write_sealed(
    storage: RunStorage, name: str, rows: Sequence[Sealed], price: Price | None, max_tokens: int
) -> None:
    """Writes a file; `max_tokens` is the limit of responses whose reply does not tell it."""
    records = [
        {
            "id": row.example.id,
            "text": row.example.text,
            "replies": [encode_line(reply).decode() for reply in row.replies],
        }
        for row in rows
        if row.replies
    ]
    if records:
        cost_usd = sum_cost((r for row in rows for r in row.replies), price, max_tokens)
        told = json.dumps({"usd": cost_usd, "by": _identify(price, max_tokens)})
        table = pa.Table.from_pylist(records, _SCHEMA).replace_schema_metadata({_COST: told})
        storage.write_table(f"{_PREFIX}{name}.parquet", table)


def sum_cost(replies: Iterable[Reply], price: Price | None, max_tokens: int) -> float:
    """The dollars for replies; one without usage counts with its maximum cost."""
    return sum(
        find_cost(price, reply, read_answer(reply), reply.max_tokens or max_tokens)
        for reply in replies
    )


def _identify(price: Price | None, max_tokens: int) -> str:
    return hash_content([repr(price), max_tokens])


class SealedFile:
    """A file of sealed replies; `ids` are read at once, the replies when they are asked for."""

    def __init__(self, storage: RunStorage, name: str) -> None:
        """Raises an InputError if the file is damaged."""
        self._storage, self._name = storage, name
        table = storage.read_columns(name, ["id"], _SCHEMA)
        self._cost: dict[str, Any] = {}
        with suppress(ValueError):
            self._cost = check_kind(_Cost, (table.schema.metadata or {}).get(_COST, b"{}"))
        self.ids: NDArray[np.bytes_] = pack_ids(table["id"].to_pylist())

    def find_cost(self, price: Price | None, max_tokens: int) -> float:
        """The dollars for its replies; read only if they were summed at another price."""
        if self._cost.get("by") == _identify(price, max_tokens):
            return float(self._cost["usd"])
        everything = np.ones(len(self.ids), bool)
        replies = (reply for row in self.read(everything) for reply in row.replies)
        return sum_cost(replies, price, max_tokens)

    def read(self, chosen: NDArray[np.bool_]) -> Iterator[Sealed]:
        """The rows that a mask chooses."""
        if chosen.any():
            for row in self._storage.read_table(self._name, _SCHEMA).filter(chosen).to_pylist():
                found = (decode_line(line) for line in row["replies"])
                replies = [reply for reply in found if reply is not None]
                yield Sealed(Example(row["id"], row["text"]), replies)


def list_sealed(storage: RunStorage) -> list[SealedFile]:
    """All files of sealed replies."""
    names = [name for name in storage.list_files(FOLDER) if name.startswith(_PREFIX)]
    return [SealedFile(storage, name) for name in names]


def tidy_journal(storage: RunStorage) -> None:
    """Removes what is sealed from the journal, where crashed jobs have left it.

    No writer may be at work. A crash loses nothing.
    """
    owned = pack_ids({reply.example_id for reply in iterate_journal(storage) if reply.example_id})
    if len(owned):
        files = list_sealed(storage)
        rows = (row for file in files for row in file.read(np.isin(file.ids, owned)))
        sealed = {hash(reply) for row in rows for reply in row.replies}
        filter_journal(storage, lambda reply: hash(reply) not in sealed)
