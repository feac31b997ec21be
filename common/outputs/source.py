"""The inputs as a data source of Ray: a block that becomes a part is one row."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from common.data.place import INPUTS, find_place
from common.data.sources import Shard
from common.environment import read_data_secret
from common.errors import InputError
from common.outputs.inputs import Block, Inputs, read_inputs
from common.run.run import PackedRun
from common.signals import die_with_parent

BLOCK_SCHEMA = pa.schema({"part": pa.string(), "rows": pa.large_binary(), "is_new": pa.binary()})
"""`rows`: an Arrow stream of the block's rows; `is_new`: a bit for each of them, see `Inputs`. Ray
neither splits nor joins what one row holds."""


class InputSource(Datasource):  # type: ignore[misc]
    """A read task for each shard that has blocks to answer; it has no secret."""

    def __init__(self, inputs: Inputs, blocks: Sequence[Block], packed: PackedRun) -> None:
        super().__init__()
        self._is_remote = find_place(packed.settings, INPUTS).is_remote
        self._tasks = []
        by_shard: dict[int, list[Block]] = {}
        for block in blocks:
            by_shard.setdefault(block.shard, []).append(block)
        for number, own in by_shard.items():
            marks = [inputs.mark_new(block.start, block.rows) for block in own]
            wanted = {
                block.number: (block.name, block.rows, np.packbits(mark).tobytes())
                for block, mark in zip(own, marks, strict=True)
            }
            shard = inputs.shards[number].without_secrets()
            reader = _Reader(packed, shard, inputs.schema, wanted)
            about = BlockMetadata(len(own), sum(block.rows for block in own), None, None)
            self._tasks.append(ReadTask(reader, about, BLOCK_SCHEMA))

    @property
    def supports_distributed_reads(self) -> bool:
        """Whether any node can read: a local file is on the driver's."""
        return self._is_remote

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """The tasks, in the order of the source."""
        return self._tasks


class _Reader:
    """Reads the wanted blocks of a shard, by number."""

    __name__ = "read_inputs"

    def __init__(
        self,
        packed: PackedRun,
        shard: Shard,
        schema: pa.Schema,
        wanted: dict[int, tuple[str, int, bytes]],
    ) -> None:
        """`wanted` has by number a block's name, rows and marks; `schema` is the kept columns'."""
        self._packed, self._shard, self._wanted = packed, shard, dict(wanted)
        self._schema = schema

    def __call__(self) -> Iterator[pa.Table]:
        die_with_parent()
        settings, task = self._packed.settings, self._packed.task
        data = settings.data.model_copy(update={"s3_secret": read_data_secret()})
        settings = settings.model_copy(update={"data": data})
        tables = map(self._cast, read_inputs(settings, task, self._shard))
        left = dict(self._wanted)
        for number, rows in enumerate(cut(tables, settings.predict.part_rows)):
            name, count, is_new = left.pop(number, ("", rows.num_rows, b""))
            if rows.num_rows != count:
                break
            if name:
                yield pack(rows, name, is_new)
        else:
            if not left:
                return
        raise InputError(f"{self._shard.name} has changed since the job began; run again")

    def _cast(self, table: pa.Table) -> pa.Table:
        own = [table.schema.field("id"), table.schema.field("text")]
        return table.cast(pa.schema([*own, *self._schema]))


def cut(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The rows of tables in tables of so many rows, the last one of fewer."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        while count >= rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, rows)
            waiting, count = [whole.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(waiting)


def pack(rows: pa.Table, part: str, is_new: bytes) -> pa.Table:
    """A block as a table of `BLOCK_SCHEMA`."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    content = sink.getvalue().to_pybytes()
    return pa.table({"part": [part], "rows": [content], "is_new": [is_new]}, BLOCK_SCHEMA)


def unpack(rows: bytes, is_new: bytes) -> tuple[pa.Table, Sequence[bool]]:
    """A block's rows, and which of them are new."""
    table = pa.ipc.open_stream(rows).read_all()
    bits = np.unpackbits(np.frombuffer(is_new, np.uint8), count=table.num_rows)
    return table, bits.astype(bool).tolist()
