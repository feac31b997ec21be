"""The chunks at work, on storage: journal/batch-<name>.json.

A chunk's file is written before its batch is created, again with the batch's id, and removed once
the results are in the journal.
"""

import time
from dataclasses import dataclass, field

from common.errors import InputError
from common.run.storage import RunStorage
from common.teacher.journal import FOLDER

_PREFIX = f"{FOLDER}/batch-"


@dataclass
class Chunk:
    """A part of the requests.

    Attributes:
        worst_usd: the maximum dollars for it.
        adaptations: what its requests were adapted to.
        is_alone: whether no other was at work when it was made.
        id: its batch's, once that is created.
        counts: its batch's requests: total, completed, failed.
    """

    name: str
    keys: list[str]
    worst_usd: float
    adaptations: list[str]
    is_alone: bool = False
    id: str | None = None
    created_at: float = field(default_factory=time.time)
    counts: tuple[int, int, int] = (0, 0, 0)


class Chunks:
    """The files of a run's chunks."""

    def __init__(self, storage: RunStorage) -> None:
        self._storage = storage

    def read(self) -> list[Chunk]:
        """All chunks."""
        names = [n for n in self._storage.list_files(FOLDER) if n.startswith(_PREFIX)]
        names = [name for name in names if name.endswith(".json")]
        return [self._storage.read_json(name, Chunk) for name in sorted(names)]

    def write(self, chunk: Chunk) -> None:
        """Writes a chunk's file, or replaces it."""
        self._storage.write_json(f"{_PREFIX}{chunk.name}.json", vars(chunk))

    def remove(self, chunk: Chunk) -> None:
        """Removes a chunk's file."""
        self._storage.remove(f"{_PREFIX}{chunk.name}.json")


def check_no_chunks(storage: RunStorage) -> None:
    """Raises an InputError if batches are at work: to ask online, too, would pay twice."""
    if chunks := Chunks(storage).read():
        raise InputError(
            f"{len(chunks)} batches of this run are at work: set DISTILL_LABEL__LANE=batch to "
            f"collect them, or delete {storage.url}/{_PREFIX}*.json to give them up"
        )
