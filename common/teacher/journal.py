"""The journal: every raw reply that may be paid for, durable before it is parsed.

It is a write-ahead log: what a finished example has cost moves to a sealed file, see `sealed`.
Each writer has JSON Lines files of its own with a random name: on a disk one file, synced after
each group of replies; in an object store one object per group, and every 64 are merged into one.
While a group is written, the next one gathers. While the storage fails, replies wait in memory.
"""

import asyncio
import io
import json
import logging
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import NoneType

from common.errors import DistillError, StorageError
from common.run.storage import RunStorage
from common.teacher.replies import Reply

FOLDER = "journal"
_DISK_SECONDS, _OBJECT_STORE_SECONDS = 0.005, 0.1
"""The minimum time for which a group gathers."""
_RETRY_SECONDS = 600.0
"""How long a failing write is retried."""
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0
_RELEASED_AT_ONCE = 8
_SMALL_PARTS, _SMALL_BYTES = 64, 4 * 2**20
"""A writer merges its objects at this number or total size."""
_MANY_PARTS = 16
"""A job that starts merges the parts if there are more."""
_MERGED_BYTES = 16 * 2**20
"""The size of a merged part; parts of half this size are left alone."""

_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("key", "body", "service_tier", "example_id"), (str,)),
    **dict.fromkeys(("http_status", "attempts", "most_prompt_tokens", "max_tokens"), (int,)),
    "seconds": (int, float),
    "cost_usd": (int, float, NoneType),
}
"""The types of a reply's fields."""
_ID = re.compile(r"([0-9a-f]{32})?")

_encode = json.JSONEncoder(ensure_ascii=False).encode
log = logging.getLogger(__name__)


class JournalWriter:
    """Appends replies, in one event loop; `storage_error` is why the last write failed, if it did.

    A write is retried for `retry_seconds`.
    """

    def __init__(self, storage: RunStorage, retry_seconds: float = _RETRY_SECONDS) -> None:
        self.storage_error: str | None = None
        self._storage, self._retry_seconds = storage, retry_seconds
        self._name = _make_name()
        self._files: dict[str, None] = {}
        self._writing = asyncio.Lock()
        self._parts = 0
        self._small: dict[str, bytes] = {}
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._failing_since: float | None = None
        self._flusher: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of replies that are not durable yet."""
        return len(self._waiting)

    async def append(self, reply: Reply) -> None:
        """Returns once the reply is durable; it is written even if this is cancelled.

        Raises:
            DistillError: the storage has failed for too long. The reply stays in memory, and the
                next `append` writes it.
        """
        durable = asyncio.get_running_loop().create_future()
        self._waiting.append((encode_line(reply), durable))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._write_all())
        await durable

    async def _write_all(self) -> None:
        """Writes the waiting replies, group by group, until all are written or it gives up."""
        wait = _FIRST_WAIT_SECONDS
        while self._waiting:
            await asyncio.sleep(_DISK_SECONDS if self._storage.is_local else _OBJECT_STORE_SECONDS)
            group = len(self._waiting)
            try:
                lines = b"".join(line for line, _ in self._waiting[:group])
                async with self._writing:
                    await asyncio.to_thread(self._write, lines)
            except asyncio.CancelledError:
                self._name = _make_name()  # the thread may still write to the old file
                raise
            except Exception as error:
                if self._gives_up(error):
                    return
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            else:
                self._note_success(group)
                wait = _FIRST_WAIT_SECONDS

    async def start_file(self, list_open: Callable[[], Iterable[Reply]]) -> list[str]:
        """Goes on in another file, which begins with the replies that are listed.

        Returns the names of the files before, for `RunStorage.remove`. Raises a StorageError.
        """
        async with self._writing:
            replies, files = list(list_open()), list(self._files)
            self._name, self._small = _make_name(), {}
            try:
                if replies:
                    await asyncio.to_thread(self._write, b"".join(map(encode_line, replies)))
            except BaseException:
                self._name = _make_name()  # the new file may end in half a line
                raise
            for file in files:
                del self._files[file]
            return files

    def _write(self, lines: bytes) -> None:
        if self._storage.is_local:
            name = f"{FOLDER}/{self._name}.jsonl"
            self._files[name] = None
            self._storage.append_bytes(name, lines)
            return
        self._parts += 1  # also after a failure: the object may still arrive
        name = f"{FOLDER}/{self._name}-{self._parts:06}.jsonl"
        self._files[name] = None
        small_bytes = sum(map(len, self._small.values()))
        if len(self._small) < _SMALL_PARTS and small_bytes < _SMALL_BYTES:
            self._storage.write_bytes(name, lines, attempts=1)
            self._small[name] = lines
            return
        self._storage.write_bytes(name, b"".join([*self._small.values(), lines]), attempts=1)
        with suppress(StorageError):  # duplicate replies are harmless
            self._storage.remove(*self._small)
        self._small.clear()

    def _note_success(self, group: int) -> None:
        _release(deque(durable for _, durable in self._waiting[:group]))
        del self._waiting[:group]
        if self._failing_since is not None:
            log.warning("%s/%s can be written again", self._storage.url, FOLDER)
        self._failing_since = self.storage_error = None

    def _gives_up(self, error: Exception) -> bool:
        """Whether retries are used up; then all waiting callers fail."""
        self._name = _make_name()  # the old file may end in half a line
        now = asyncio.get_running_loop().time()
        self.storage_error = f"{self.waiting} paid replies wait in memory: {error}"
        is_first = self._failing_since is None
        self._failing_since = self._failing_since or now
        is_transient = isinstance(error, StorageError) and error.is_transient
        if is_transient and now - self._failing_since < self._retry_seconds:
            if is_first:
                log.warning("%s; retrying for %.0f s", self.storage_error, self._retry_seconds)
            return False
        message = f"{self.storage_error}; replies that are not stored are paid for again"
        for _, durable in self._waiting:
            if not durable.done():
                durable.set_exception(DistillError(message))
        return True


def _release(durable: deque[asyncio.Future[None]]) -> None:
    """Lets a few callers go on in each turn of the event loop.

    Else their next calls would all start in one turn, end in one, and the network idle meanwhile.
    """
    for _ in range(min(len(durable), _RELEASED_AT_ONCE)):
        if not (future := durable.popleft()).done():
            future.set_result(None)
    if durable:
        asyncio.get_running_loop().call_soon(_release, durable)


def write_lost(storage: RunStorage, owner: str, replies: Iterable[Reply]) -> None:
    """Records the calls that a crashed job may have paid for; idempotent."""
    lines = (encode_line(reply) for reply in replies)
    storage.write_bytes(f"{FOLDER}/lost-{owner}.jsonl", b"".join(lines))


def write_batch(storage: RunStorage, name: str, replies: Iterable[Reply]) -> None:
    """Writes the replies of a batch as one part; idempotent."""
    lines = (encode_line(reply) for reply in replies)
    storage.write_bytes(f"{FOLDER}/results-{name}.jsonl", b"".join(lines))


def iterate_journal(storage: RunStorage) -> Iterator[Reply]:
    """All replies, some of them twice; skips lines that a crash has cut off."""
    for line in _iterate_lines(storage):
        if (reply := decode_line(line)) is not None:
            yield reply


def _iterate_lines(storage: RunStorage) -> Iterator[bytes]:
    if storage.is_local:
        for name in _list_parts(storage):
            with Path(storage.path(name)).open("rb") as file:
                yield from file
        return
    known: set[str] = set()  # list again: a writer that outlives its job may merge some
    while parts := {n: size for n, size in _list_parts(storage).items() if n not in known}:
        for content in storage.read_many(parts):
            yield from io.BytesIO(content)
        known |= parts.keys()


def _list_parts(storage: RunStorage) -> dict[str, int]:
    """The names of the parts, and their sizes in bytes."""
    return {n: size for n, size in storage.list_sizes(FOLDER).items() if n.endswith(".jsonl")}


def filter_journal(storage: RunStorage, keeps: Callable[[Reply], bool]) -> None:
    """Removes the replies that are not kept."""
    parts = _list_parts(storage)
    for name, content in zip(parts, storage.read_many(parts), strict=True):
        lines = content.splitlines(keepends=True)
        kept = [line for line in lines if (reply := decode_line(line)) and keeps(reply)]
        if not kept:
            storage.remove(name)
        elif len(kept) < len(lines):
            storage.write_bytes(name, b"".join(kept))


def compact_journal(storage: RunStorage) -> None:
    """Merges many small parts in an object store; a crash may duplicate replies, but loses none."""
    parts = {name: n for name, n in _list_parts(storage).items() if n < _MERGED_BYTES // 2}
    if storage.is_local or len(parts) <= _MANY_PARTS:
        return
    names: list[str] = []
    lines = bytearray()
    for name, content in zip(parts, storage.read_many(parts), strict=True):
        names.append(name)
        lines += content if content.endswith(b"\n") else content + b"\n"
        if len(lines) >= _MERGED_BYTES:
            _replace_parts(storage, names, bytes(lines))
            names, lines = [], bytearray()
    _replace_parts(storage, names, bytes(lines))


def _replace_parts(storage: RunStorage, names: list[str], lines: bytes) -> None:
    if names:
        storage.write_bytes(f"{FOLDER}/merged-{_make_name()}.jsonl", lines)
        storage.remove(*names)


def encode_line(reply: Reply) -> bytes:
    """A reply as a line of JSON."""
    return _encode(vars(reply)).encode("utf-8", "backslashreplace") + b"\n"


def decode_line(line: str | bytes) -> Reply | None:
    """The reply of a line; None if a crash has cut it off, or it is not a reply."""
    try:
        reply = Reply(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    if not all(isinstance(getattr(reply, name), kinds) for name, kinds in _KINDS.items()):
        return None
    is_likely = 0 <= reply.http_status < 1000 and 0 <= (reply.cost_usd or 0) < float("inf")
    return reply if is_likely and _ID.fullmatch(reply.example_id) else None


def _make_name() -> str:
    return uuid.uuid4().hex[:12]
