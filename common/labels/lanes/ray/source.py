"""The examples as a data set of Ray: those in memory first, the others read by tasks."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from common.data.examples import Examples, TextSource
from common.data.place import find_place
from common.data.sources import Shard
from common.environment import read_data_secret
from common.records import EXAMPLE_SCHEMA
from common.run.run import PackedRun
from common.signals import die_with_parent

_SMALL_BLOCK, _BLOCK = 256, 1024
"""Rows of a block. Small ones spread few rows over all actors; Ray's driver keeps some bytes of
each."""
_BLOCK_BYTES = 4 << 20
_READERS = 2
_ID_BYTES = 40
"""Of an example's id in a block."""


def make_dataset(examples: Examples, packed: PackedRun) -> "ray.data.Dataset":
    """The examples in blocks. What is in memory starts no task, unlike with `from_arrow`."""
    rest = examples.rest
    if len(rest):  # before any data set: each takes the context's values
        context = ray.data.DataContext.get_current()
        size = _BLOCK * int(_ID_BYTES + rest.sizes.mean())
        context.target_max_block_size = min(size, _BLOCK_BYTES)
    found = []
    if examples.first:
        characters = sum(len(example.text) for example in examples.first)
        few = max(len(examples.first) / _SMALL_BLOCK, characters / _BLOCK_BYTES)
        blocks = min(math.ceil(few), len(examples.first))
        rows = [vars(example) for example in examples.first]
        found.append(ray.data.from_items(rows, override_num_blocks=blocks))
    if len(rest):
        source = ExampleSource(rest, packed)  # a driver's node may offer no CPU
        found.append(ray.data.read_datasource(source, num_cpus=0, concurrency=_READERS))
    return found[0].union(*found[1:]) if len(found) > 1 else found[0]


class ExampleSource(Datasource):  # type: ignore[misc]
    """A read task for each shard, with a mask of a bit a row; it has no secret."""

    def __init__(self, examples: Examples, packed: PackedRun) -> None:
        super().__init__()
        source, size = examples.source, int(examples.sizes.sum())
        assert source is not None
        self._is_remote = find_place(source.settings, "train").is_remote
        self._bytes, self._tasks = size, []
        for shard, chosen in source.split(examples.rows):
            count, bits = int(chosen.sum()), np.packbits(chosen)
            about = BlockMetadata(count, max(1, size * count // len(examples)), None, None)
            reader = _Reader(packed, shard.without_secrets(), bits, len(chosen))
            self._tasks.append(ReadTask(reader, about, EXAMPLE_SCHEMA))

    @property
    def supports_distributed_reads(self) -> bool:
        """Whether any node can read: a local file is on the driver's."""
        return self._is_remote

    def estimate_inmemory_data_size(self) -> int:
        """The bytes of all texts."""
        return self._bytes

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """The tasks, in the order of the source."""
        return self._tasks


class _Reader:
    """Reads the chosen examples of a shard."""

    __name__ = "read_examples"

    def __init__(self, packed: PackedRun, shard: Shard, bits: NDArray[np.uint8], rows: int) -> None:
        self._packed, self._shard, self._bits, self._rows = packed, shard, bits, rows

    def __call__(self) -> Iterator[pa.Table]:
        die_with_parent()
        settings, task = self._packed.settings, self._packed.task
        data = settings.data.model_copy(update={"s3_secret": read_data_secret()})
        settings = settings.model_copy(update={"data": data})
        chosen = np.unpackbits(self._bits, count=self._rows).astype(bool)
        for group in TextSource(settings, task, [], []).read(self._shard, chosen):
            table = pa.Table.from_pylist([vars(example) for example in group], EXAMPLE_SCHEMA)
            for start in range(0, table.num_rows, _SMALL_BLOCK):
                yield table.slice(start, _SMALL_BLOCK)
