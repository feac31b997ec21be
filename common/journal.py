"""The journal: every reply that was paid for, raw, durable before it is parsed.

Each writer appends to parts of its own, JSON lines named by a random word: on a disk one file that
is synced for every group of replies, in an object store one small object a group. While a group is
being written the next one gathers, so that the cost of a write is shared when replies come fast.
"""

import asyncio
import json
import os
import uuid
from dataclasses import asdict
from pathlib import Path

from common.replies import Reply, read_answer
from common.storage import RunStorage

FOLDER = "journal"
_OBJECT_STORE_SECONDS = 0.1
"""How long a group gathers at least before it becomes an object."""


class JournalWriter:
    """Appends replies. Use it in one event loop."""

    def __init__(self, storage: RunStorage) -> None:
        """Opens nothing: the first reply makes the first part."""
        self._storage = storage
        self._name = uuid.uuid4().hex[:12]
        self._parts = 0
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None

    async def append(self, reply: Reply) -> None:
        """Returns once the reply is durable."""
        line = json.dumps(asdict(reply), ensure_ascii=False).encode("utf-8", "backslashreplace")
        durable = asyncio.get_running_loop().create_future()
        self._waiting.append((line + b"\n", durable))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        await durable

    async def _flush(self) -> None:
        while self._waiting:
            if not self._storage.is_local:
                await asyncio.sleep(_OBJECT_STORE_SECONDS)
            group, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._write, b"".join(line for line, _ in group))
            except BaseException as error:
                self._name = uuid.uuid4().hex[:12]  # what follows half a line would be lost
                for _, durable in group:
                    if not durable.done():
                        durable.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            for _, durable in group:
                if not durable.done():
                    durable.set_result(None)

    def _write(self, lines: bytes) -> None:
        if not self._storage.is_local:
            self._parts += 1
            name = f"{FOLDER}/{self._name}-{self._parts:06}.jsonl"
            self._storage.write_bytes(name, lines)
            return
        path = Path(self._storage.path(f"{FOLDER}/{self._name}.jsonl"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


def read_journal(storage: RunStorage) -> dict[str, Reply]:
    """All replies by key, an answer before a refusal.

    A last line that a kill cut off is passed over: it was never durable.
    """
    replies: dict[str, Reply] = {}
    for name in storage.list_files(FOLDER):
        for line in storage.read_bytes(name).splitlines():
            try:
                reply = Reply(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if reply.key not in replies or read_answer(reply).error is None:
                replies[reply.key] = reply
    return replies
