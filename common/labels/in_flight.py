"""The calls that a session would lose if it were killed, on storage from before its first call.

They may have been paid for, and the journal has no reply for them. A session that ends well removes
its file; the next one charges what a crashed session left behind.
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
    """What a session left behind: calls at most in flight, and calls of dead workers."""

    name: str
    in_flight: int
    lost: int


class InFlightRecord:
    """A session's own file."""

    def __init__(self, storage: RunStorage) -> None:
        self._storage, self._name = storage, f"{_PREFIX}{uuid.uuid4().hex[:12]}.json"

    def write(self, in_flight: int, lost: int = 0) -> None:
        """Says how many calls a crash loses; where nothing can be lost, there is no file.

        Raises:
            StorageError: it cannot be written.
        """
        if in_flight or lost:
            self._storage.write_json(self._name, {"in_flight": in_flight, "lost": lost})
        else:
            self._storage.remove(self._name)


def list_crashed(storage: RunStorage) -> list[CrashedSession]:
    """The sessions that crashed and have not been charged yet, while the lock keeps others away."""
    return [
        _read(name.removeprefix(_PREFIX).removesuffix(".json"), _read_counts(storage, name))
        for name in storage.list_files(FOLDER)
        if name.startswith(_PREFIX)
    ]


def forget_crashed(storage: RunStorage, sessions: list[CrashedSession]) -> None:
    """Removes the files of sessions that have been charged."""
    storage.remove(*(f"{_PREFIX}{crashed.name}.json" for crashed in sessions))


def _read_counts(storage: RunStorage, name: str) -> Any:
    with suppress(InputError):  # a file that says nothing charges nothing
        return storage.read_json(name)
    return {}


def _read(name: str, content: Any) -> CrashedSession:
    counts = content if isinstance(content, dict) else {}
    found = [counts.get(key) for key in ("in_flight", "lost")]
    in_flight, lost = (n if isinstance(n, int) and n > 0 else 0 for n in found)
    return CrashedSession(name, in_flight, lost)
