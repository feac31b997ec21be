"""A session's record of its calls in flight, which a crash would lose.

They may be paid for without a reply in the journal. A session writes the file before its first call
and removes it at the end; the next session charges the calls of a crashed one.
"""

import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from common.errors import InputError
from common.run.storage import RunStorage
from common.teacher.journal import FOLDER

_PREFIX = f"{FOLDER}/in-flight-"


@dataclass(frozen=True)
class CrashedSession:
    """A crashed session: its maximum calls in flight, and the lost calls of its crashed workers."""

    name: str
    in_flight: int
    lost: int


class InFlightRecord:
    """A session's file."""

    def __init__(self, storage: RunStorage) -> None:
        self._storage, self._name = storage, f"{_PREFIX}{uuid.uuid4().hex[:12]}.json"

    def write(self, in_flight: int, lost: int = 0) -> None:
        """Records how many calls a crash loses; removes the file if there are none."""
        if in_flight or lost:
            self._storage.write_json(self._name, {"in_flight": in_flight, "lost": lost})
        else:
            self._storage.remove(self._name)


def list_crashed(storage: RunStorage) -> list[CrashedSession]:
    """The crashed sessions that are not charged yet."""
    names = [name for name in storage.list_files(FOLDER) if name.startswith(_PREFIX)]
    return [_read(storage, name) for name in names]


def forget_crashed(storage: RunStorage, sessions: list[CrashedSession]) -> None:
    """Removes the files of charged sessions."""
    storage.remove(*(f"{_PREFIX}{crashed.name}.json" for crashed in sessions))


def _read(storage: RunStorage, name: str) -> CrashedSession:
    counts: Any = None
    with suppress(InputError):  # a damaged file charges nothing
        counts = storage.read_json(name)
    found = [counts.get(key) if isinstance(counts, dict) else 0 for key in ("in_flight", "lost")]
    in_flight, lost = (n if isinstance(n, int) and n > 0 else 0 for n in found)
    return CrashedSession(name.removeprefix(_PREFIX).removesuffix(".json"), in_flight, lost)
