"""The examples to label: the distinct texts of the train split.

Of each only a hash and two sizes are kept in memory, and the texts of the first ones. The others
are read again where they are needed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.place import find_place
from common.data.sources import Shard, list_shards, read_shard
from common.errors import InputError, show
from common.records import Example, hash_text
from common.settings import Settings
from common.tasks.task import Task

ID_TYPE = np.dtype("S16")
"""An id's bytes. An item of such an array loses the zeros at its end; a comparison does not."""
_IN_MEMORY, _IN_MEMORY_CHARACTERS = 10_000, 64_000_000
_LEAST_IN_MEMORY = 16
_END = b"\xff" * 17
"""Above every id."""


@dataclass(frozen=True)
class Examples:
    """Distinct texts, in the order of the source.

    Attributes:
        ids: of type `ID_TYPE`, shape (n,), as are all arrays.
        rows: the row of the source that has the text first.
        characters: the texts' lengths.
        sizes: the texts' bytes in UTF-8.
        first: the examples with the lowest ids, by id, and the blank ones.
        duplicates: rows of the source whose text is that of an earlier one.
        source: reads the texts that are not in `first`.
    """

    ids: NDArray[np.bytes_]
    rows: NDArray[np.int64]
    characters: NDArray[np.int32]
    sizes: NDArray[np.int32]
    first: Sequence[Example]
    duplicates: int = 0
    source: "TextSource | None" = None

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Examples":
        """Examples in memory."""
        rows = list({example.id: example for example in examples}.values())
        return cls(
            pack_ids([row.id for row in rows]),
            np.arange(len(rows)),
            np.array([len(row.text) for row in rows], np.int32),
            np.array([_measure(row.text) for row in rows], np.int32),
            sorted(rows, key=lambda row: row.id),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, chosen: NDArray[np.bool_]) -> "Examples":
        """Those that a mask of shape (n,) chooses."""
        places = self.find(pack_ids([example.id for example in self.first]))
        return replace(
            self,
            ids=self.ids[chosen],
            rows=self.rows[chosen],
            characters=self.characters[chosen],
            sizes=self.sizes[chosen],
            first=list(compress(self.first, chosen[places])),
        )

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self.ids)

    def find(self, ids: NDArray[np.bytes_]) -> NDArray[np.intp]:
        """The places of other ids, -1 where an id is not among these."""
        if not len(self):
            return np.full(len(ids), -1)
        places = np.searchsorted(self.ids, ids, sorter=self._order)
        places = self._order[np.minimum(places, len(self) - 1)]
        return np.where(self.ids[places] == ids, places, -1)

    def list_ids(self) -> list[str]:
        """The ids as text."""
        return unpack_ids(self.ids)

    def hash_ids(self) -> str:
        """`hash_content` of `list_ids`, in little memory."""
        digest = hashlib.sha256(b"[")
        for start in range(0, len(self), _IN_MEMORY):
            ids = ", ".join(f'"{id}"' for id in unpack_ids(self.ids[start : start + _IN_MEMORY]))
            digest.update(f"{', ' if start else ''}{ids}".encode())
        digest.update(b"]")
        return digest.hexdigest()[:32]

    def mark_blank(self) -> NDArray[np.bool_]:
        """A mask of those without text."""
        marks = np.zeros(len(self), bool)
        marks[self.find(pack_ids([e.id for e in self.first if not e.text.strip()]))] = True
        return marks

    @property
    def rest(self) -> "Examples":
        """Those that are not in memory."""
        others = np.ones(len(self), bool)
        others[self.find(pack_ids([example.id for example in self.first]))] = False
        return self.select(others)

    def read(self) -> Iterator[list[Example]]:
        """All of them in groups, those in memory first. Raises an InputError, see `read_tables`."""
        if self.first:
            yield list(self.first)
        rest = self.rest
        if not len(rest):
            return
        assert self.source is not None
        for shard, chosen in self.source.split(rest.rows):
            yield from self.source.read(shard, chosen)


@dataclass(frozen=True)
class TextSource:
    """The train split's shards, and how many rows each has."""

    settings: Settings
    task: Task
    shards: Sequence[Shard]
    counts: Sequence[int]

    def split(self, rows: NDArray[np.int64]) -> Iterator[tuple[Shard, NDArray[np.bool_]]]:
        """The shards that have some of the rows, each with a mask of its own."""
        start = 0
        for shard, count in zip(self.shards, self.counts, strict=True):
            low, high = np.searchsorted(rows, (start, start + count))
            if high > low:
                chosen = np.zeros(count, bool)
                chosen[rows[low:high] - start] = True
                yield shard, chosen
            start += count

    def read(self, shard: Shard, chosen: NDArray[np.bool_]) -> Iterator[list[Example]]:
        """The chosen examples of a shard, in groups. Raises an InputError, see `read_tables`."""
        start = 0
        for texts in _read_texts(self.settings, self.task, shard):
            mask = chosen[start : start + len(texts)]
            start += len(texts)
            if mask.any():
                yield [Example(hash_text(text), text) for text in compress(texts, mask)]


def load_examples(settings: Settings, task: Task) -> Examples:
    """The train texts without duplicates, at most `data.train_limit`.

    A limit keeps the lowest ids: the sample does not depend on the file's order, and a higher limit
    only adds rows.

    Raises:
        InputError: the source is missing, unreadable or empty, or lacks the text column.
    """
    scan = _Scan()
    shards = list_shards(settings, "train")
    counts = [scan.add(_read_texts(settings, task, shard)) for shard in shards]
    if not sum(counts):
        raise find_place(settings, "train").refuse("has no rows")
    return scan.choose(TextSource(settings, task, shards, counts), settings.data.train_limit)


class _Scan:
    """Gathers what is kept of each row."""

    def __init__(self) -> None:
        self._ids: list[bytes] = []
        self._sizes: list[NDArray[np.int32]] = []
        self._lowest: dict[bytes, str] = {}
        self._blank: dict[bytes, str] = {}
        self._bound = _END

    def add(self, groups: Iterable[list[str]]) -> int:
        """Adds a shard's texts; returns their number."""
        count = 0
        for texts in groups:
            encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
            ids = [hashlib.sha256(content).digest()[:16] for content in encoded]
            sizes = [list(map(len, texts)), list(map(len, encoded))]
            self._ids.append(b"".join(ids))
            self._sizes.append(np.array(sizes, np.int32))
            self._blank |= {id: t for id, t in zip(ids, texts, strict=True) if not t.strip()}
            bound = self._bound
            self._lowest |= {id: t for id, t in zip(ids, texts, strict=True) if id < bound}
            has_many = sum(map(len, self._lowest.values())) > 2 * _IN_MEMORY_CHARACTERS
            if has_many or len(self._lowest) > 2 * _IN_MEMORY:
                self._cut()
            count += len(texts)
        return count

    def _cut(self) -> None:
        """Keeps the lowest ids that are not too many."""
        kept: dict[bytes, str] = {}
        characters = 0
        for id in sorted(self._lowest)[:_IN_MEMORY]:
            characters += len(self._lowest[id])
            if characters > _IN_MEMORY_CHARACTERS and len(kept) >= _LEAST_IN_MEMORY:
                break
            kept[id] = self._lowest[id]
        if len(kept) < len(self._lowest):
            self._bound = max(kept) + b"\0"
        self._lowest = kept

    def choose(self, source: TextSource, limit: int) -> Examples:
        """The distinct texts, at most `limit` (0: all)."""
        all_ids = read_ids(b"".join(self._ids))
        characters, sizes = np.concatenate(self._sizes, axis=1)
        self._ids, self._sizes = [], []
        distinct, rows = np.unique(all_ids, return_index=True)
        duplicates, kept = len(all_ids) - len(distinct), slice(limit or None)
        last, rows = distinct[kept][-1].ljust(16, b"\0"), np.sort(rows[kept])
        self._cut()
        first = self._lowest | self._blank
        in_memory = [Example(id.hex(), first[id]) for id in sorted(first) if id <= last]
        return Examples(
            all_ids[rows], rows, characters[rows], sizes[rows], in_memory, duplicates, source
        )


def pack_ids(ids: Iterable[str]) -> NDArray[np.bytes_]:
    """Ids as an array of `ID_TYPE`."""
    return read_ids(bytes.fromhex("".join(ids)))


def read_ids(content: bytes) -> NDArray[np.bytes_]:
    """The array of ids that follow each other."""
    return np.frombuffer(content, ID_TYPE) if content else np.empty(0, ID_TYPE)


def unpack_ids(ids: NDArray[np.bytes_]) -> list[str]:
    """The ids of an array as text."""
    digits = ids.tobytes().hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]


def iterate_texts(settings: Settings, task: Task) -> Iterator[list[str]]:
    """All train texts in groups. Raises an InputError, see `load_examples`."""
    for shard in list_shards(settings, "train"):
        yield from _read_texts(settings, task, shard)


def _read_texts(settings: Settings, task: Task, shard: Shard) -> Iterator[list[str]]:
    name = settings.data.text_column or task.columns.text
    if name == (settings.data.reference_column or task.columns.reference):
        raise InputError(
            f"DISTILL_DATA__TEXT_COLUMN={name!r} is also the column of the reference answers: the "
            "teacher would be shown them"
        )
    for table in read_shard(settings, shard, [name], optional=[]):
        yield [strip_prefix(text, settings, task) for text in table[name].to_pylist()]


def strip_prefix(text: Any, settings: Settings, task: Task) -> str:
    """A text without the prefix of the data set. Raises an InputError if it is not a string."""
    prefix = settings.data.text_prefix
    if not isinstance(text, str | None):
        raise InputError(
            f"the text column {settings.data.text_column or task.columns.text!r} has {show(text)}, "
            "not a string: set DISTILL_DATA__TEXT_COLUMN"
        )
    return (text or "").removeprefix(task.columns.text_prefix if prefix is None else prefix)


def _measure(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
