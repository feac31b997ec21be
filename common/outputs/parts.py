"""The parts of the outputs: <root>/<run>/outputs/<name>/part-<shard>-<number>.parquet.

A part is written at once, with the student's answers. Rows whose text an earlier part has are left
open, and filled in at the end, as are those that the teacher answers. A part's metadata has the
fingerprint of the outputs, and of the cascade that has filled it in.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa

from common.outputs.inputs import OUTPUT_SCHEMA
from common.run.storage import RunStorage

REPEATED = "repeated"
"""The error of a row that is still open, as an earlier part has its text."""
_KEY, _FILLED = b"distill.fingerprint", b"distill.filled"
_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class OutputParts:
    """The parts in a folder of the run.

    Attributes:
        fingerprint: a hash of what the student's answers depend on.
        filled: a hash of what the teacher's depend on; empty without a cascade.
    """

    storage: RunStorage
    folder: str
    fingerprint: str
    filled: str = ""

    def locate(self, name: str) -> str:
        """A part's file."""
        return f"{self.folder}/{name}.parquet"

    def find_done(self, names: Iterable[str]) -> set[str]:
        """Which parts are written, and filled in by no other teacher or threshold."""
        existing = set(self.storage.list_files(self.folder))
        found = [name for name in names if self.locate(name) in existing]

        def is_own(name: str) -> bool:
            metadata = self.read(name, ["id"]).schema.metadata or {}
            filled = metadata.get(_FILLED, b"").decode()
            is_same = metadata.get(_KEY) == self.fingerprint.encode()
            return is_same and filled in ("", self.filled)

        return {name for name, own in zip(found, run_all(is_own, found), strict=True) if own}

    def keep(self, names: Sequence[str]) -> list[str]:
        """Removes other parts; returns the files of these."""
        files = [self.locate(name) for name in names]
        others = set(self.storage.list_files(self.folder)) - set(files)
        own = re.compile(re.escape(self.folder) + r"/part-\d+-\d+\.parquet")
        self.storage.remove(*filter(own.fullmatch, others))
        return files

    def write(self, name: str, table: pa.Table, filled: str = "") -> None:
        """Writes a part, of `OUTPUT_SCHEMA` and the kept columns."""
        metadata = {_KEY: self.fingerprint, _FILLED: filled}
        self.storage.write_table(self.locate(name), table.replace_schema_metadata(metadata))

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A part, or some of its columns."""
        if columns is None:
            return self.storage.read_table(self.locate(name), OUTPUT_SCHEMA)
        return self.storage.read_columns(self.locate(name), columns, OUTPUT_SCHEMA)

    def read_all(self, names: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of parts, one after the other."""
        yield from run_all(partial(self.read, columns=columns), names)


def run_all(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The results for all items, in their order, by a few threads, not far ahead."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(items), 4 * _THREADS):
            yield from pool.map(function, items[start : start + 4 * _THREADS])
