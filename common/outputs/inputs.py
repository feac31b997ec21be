"""The inputs of the predict job: every row of a source, in blocks that become parts.

Of each row only a hash is kept in memory; Ray's tasks read the texts again.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.data.examples import read_ids, strip_prefix
from common.data.place import INPUTS, find_place
from common.data.sources import Shard, list_shards, read_shard
from common.errors import SettingsError
from common.records import hash_text
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.task import Task

OUTPUT_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "text": pa.string(),
        "prediction": pa.string(),
        "confidence": pa.float64(),
        "answered_by": pa.string(),
        "error": pa.string(),
    }
)
"""`answered_by`: student or teacher. `error`: why there is no answer, or the label rule that it
breaks. The kept columns of the source follow."""


@dataclass(frozen=True)
class Block:
    """Rows of a shard that become a part; `start` is the first one's number in the source."""

    shard: int
    number: int
    start: int
    rows: int

    @property
    def name(self) -> str:
        """The part's name; the order of names is that of the source."""
        return f"part-{self.shard:05}-{self.number:06}"


@dataclass(frozen=True)
class Inputs:
    """The rows of the source.

    Attributes:
        shards: what one task reads.
        counts: the rows of each.
        firsts: the first row that has the same text, shape (rows,).
        digest: a hash of all texts and kept columns in their order, and of the `counts`.
        schema: of the kept columns.
    """

    shards: Sequence[Shard]
    counts: Sequence[int]
    firsts: NDArray[np.int64]
    digest: str
    schema: pa.Schema

    def __len__(self) -> int:
        return len(self.firsts)

    @property
    def distinct(self) -> int:
        """The number of different texts."""
        return int(self.mark_new(0, len(self)).sum())

    def list_blocks(self, part_rows: int) -> list[Block]:
        """All blocks, in the order of the source."""
        blocks, start = [], 0
        for shard, count in enumerate(self.counts):
            for number, at in enumerate(range(0, count, part_rows)):
                rows = min(part_rows, count - at)
                blocks.append(Block(shard, number, start + at, rows))
            start += count
        return blocks

    def mark_new(self, start: int, rows: int) -> NDArray[np.bool_]:
        """Which of some rows have a text that no earlier row of the source has."""
        is_new: NDArray[np.bool_] = self.firsts[start : start + rows] == np.arange(
            start, start + rows
        )
        return is_new


def check_settings(settings: Settings) -> None:
    """Raises a SettingsError if no source is set, or two columns would have one name."""
    if not settings.predict.source:
        raise SettingsError(
            "DISTILL_PREDICT__SOURCE is not set: name the file, folder, s3 URL or data set of the "
            "texts to answer"
        )
    name_columns(settings)


def load_inputs(settings: Settings, task: Task) -> Inputs:
    """Reads the whole source once.

    Raises:
        SettingsError: see `check_settings`.
        InputError: it is missing, unreadable or empty, lacks a column, or a column to keep is of
            several types.
    """
    check_settings(settings)
    shards = list_shards(settings, INPUTS)
    contents, digest = [], hashlib.sha256()
    counts = [0] * len(shards)
    schema = pa.schema([])
    for number, shard in enumerate(shards):
        for table in read_inputs(settings, task, shard):
            content = bytes.fromhex("".join(table["id"].to_pylist()))
            kept = table.drop_columns(["id", "text"])
            digest.update(content + repr(kept.to_pydict() if kept.column_names else "").encode())
            schema = _unify(settings, shard, schema, kept)
            contents.append(content)
            counts[number] += table.num_rows
    digest.update(repr(counts).encode())
    ids = read_ids(b"".join(contents))
    if not len(ids):
        raise find_place(settings, INPUTS).refuse("has no rows")
    _, places, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return Inputs(shards, counts, places[inverse], digest.hexdigest()[:32], schema)


def _unify(settings: Settings, shard: Shard, known: pa.Schema, table: pa.Table) -> pa.Schema:
    """One schema for a column's types. Raises an InputError if they do not go together."""
    kinds = [(name, table[name]) for name in table.column_names]
    # without a value, a column may be of any type
    new = [(n, pa.null() if c.null_count == len(c) else c.type) for n, c in kinds]
    try:
        return pa.unify_schemas([known, pa.schema(new)], promote_options="permissive")
    except pa.ArrowException as error:
        raise find_place(settings, INPUTS).refuse(
            f"has a column to keep of several types ({error}; in {shard.name}); convert it, or "
            "take it out of DISTILL_PREDICT__KEEP"
        ) from None


def read_inputs(settings: Settings, task: Task, shard: Shard) -> Iterator[pa.Table]:
    """A shard's rows as tables: `id`, `text` and the kept columns.

    Raises an InputError, see `read_tables`.
    """
    name, kept = settings.data.text_column or task.columns.text, name_columns(settings)
    for table in read_shard(settings, shard, [name], optional=[], kept=list(kept)):
        texts = [strip_prefix(text, settings, task) for text in table[name].to_pylist()]
        columns: dict[str, Any] = {
            "id": pa.array(map(hash_text, texts), pa.string()),
            "text": pa.array([_repair(text) for text in texts], pa.string()),
        }
        yield pa.table(columns | {new: _decode(table[old]) for old, new in kept.items()})


def _decode(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with values instead of a dictionary's numbers: parts share no dictionary."""
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _repair(text: str) -> str:
    """The text without halves of surrogate pairs, which no file of UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def name_columns(settings: Settings) -> dict[str, str]:
    """The names in the outputs of the columns to keep, by those in the source.

    Raises a SettingsError if two columns of the outputs would have one name, or a column two.
    """
    names: dict[str, str] = {}
    for old, _, given in (name.partition(":") for name in settings.predict.keep):
        new = given or old
        if old in names:
            raise SettingsError(f"DISTILL_PREDICT__KEEP names the column {old!r} twice")
        if new in OUTPUT_SCHEMA.names or new in names.values():
            raise SettingsError(
                f"DISTILL_PREDICT__KEEP={old!r}: the outputs have another column {new!r}; rename "
                f"yours, as in {old}:source_{old}"
            )
        names[old] = new
    return names


def open_outputs(settings: Settings, folder: str) -> RunStorage:
    """The outputs' folder as a storage with a lock of its own: other jobs may use the run."""
    return RunStorage(settings.model_copy(update={"run": f"{settings.run}/{folder}"}))


def find_folder(settings: Settings) -> str:
    """The outputs' folder: by the setting, else by the source's last part without suffixes."""
    predict = settings.predict
    stem = PurePosixPath(predict.source.rstrip("/")).name.partition(".")[0]
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem)
    return f"outputs/{predict.name or kept.strip('-._') or 'inputs'}"
