"""A run's folder, on the local disk or in an object store.

Writes are atomic, see `common.run.stores`. Calls of an object store are retried with backoff.
"""

import errno
import io
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from common.errors import InputError, StorageError
from common.run.stores import Disk, ObjectStore, WatchedFolder, explain_failure
from common.settings import Settings

_ATTEMPTS = 4
_WAIT_SECONDS = 0.5
"""Before the second attempt; doubled before each further one."""
_READERS = 16
"""Objects read concurrently; the client's CPU time is the limit beyond that."""
_READ_AHEAD_BYTES = 32 * 2**20

T = TypeVar("T")
log = logging.getLogger(__name__)


class RunStorage:
    """The folder `<root>/<run>`; names are relative to it. Methods may raise a StorageError."""

    def __init__(self, settings: Settings) -> None:
        """Opens the root without writing. Raises an InputError if it is missing or unreadable."""
        root = settings.storage.absolute_root
        try:
            fs, path = url_to_fs(root, **_client_options(root))
        except (ValueError, ImportError) as error:
            raise InputError(f"DISTILL_STORAGE__ROOT={root!r} cannot be opened: {error}") from None
        self.is_local = "file" in fs.protocol
        self.wait_seconds = settings.storage.wait_seconds
        self.url = f"{root.rstrip('/')}/{settings.run}"
        self._path = str(fs._strip_protocol(f"{path.rstrip('/')}/{settings.run}"))
        self._store: Disk | ObjectStore
        if self.is_local:
            self._store = Disk()
            self._check_folder(Path(path))
        else:
            fs.retries = 1  # s3fs's own retries can take minutes
            self._store = ObjectStore(fs)
            self._check_bucket(fs, root, path)

    @staticmethod
    def _check_folder(root: Path) -> None:
        existing = next(p for p in (root, *root.parents) if p.exists())
        if not existing.is_dir():
            reason = "is not a folder"
        elif not os.access(existing, os.W_OK):
            reason = f"is not writable for user {os.getuid()}"
        else:
            return
        raise InputError(f"DISTILL_STORAGE__ROOT={str(root)!r}: {str(existing)!r} {reason}")

    def _check_bucket(self, fs: Any, root: str, path: str) -> None:
        bucket = path.split("/")[0]
        try:
            if self._try("read", "", lambda _: bool(fs.exists(path) or fs.exists(bucket))):
                return
            reason = "it does not exist"
        except StorageError as error:
            refused = getattr(error.__cause__, "errno", None) == errno.EINVAL
            if error.is_transient and not refused:
                raise
            reason = f"{type(error.__cause__).__name__}: {error.__cause__}"
        raise InputError(
            f"DISTILL_STORAGE__ROOT={root!r}: the bucket {bucket!r} cannot be read ({reason}); "
            "check its name, the AWS_* variables and AWS_ENDPOINT_URL"
        )

    def path(self, name: str = "") -> str:
        """A file's path on the file system, without protocol."""
        return f"{self._path}/{name}" if name else self._path

    def watch(self) -> WatchedFolder | None:
        """The folder as it is now; None in an object store, which has no folders."""
        return WatchedFolder(self._path) if self.is_local else None

    def exists(self, name: str) -> bool:
        """Whether a file exists."""
        return self._try("read", name, self._store.exists)

    def list_files(self, folder: str) -> list[str]:
        """The sorted names of all files below a folder; empty if it does not exist."""
        return list(self.list_sizes(folder))

    def list_sizes(self, folder: str) -> dict[str, int]:
        """The names of `list_files`, with sizes in bytes."""
        sizes = self._try("listed", folder, self._store.find)
        return {path[len(self._path) + 1 :]: sizes[path] for path in sorted(sizes)}

    def read_bytes(self, name: str) -> bytes:
        """The content of a file. Raises a FileNotFoundError if it does not exist."""
        return self._try("read", name, self._store.read)

    def read_many(self, sizes: Mapping[str, int]) -> Iterator[bytes]:
        """The contents of files with these sizes, in order, read ahead; a missing one is empty."""
        names = deque(sizes)
        ahead: deque[tuple[int, Future[bytes]]] = deque()
        with ThreadPoolExecutor(_READERS) as pool:
            while names or ahead:
                room = _READ_AHEAD_BYTES - sum(size for size, _ in ahead)
                if names and len(ahead) < 2 * _READERS and (not ahead or sizes[names[0]] <= room):
                    name = names.popleft()
                    ahead.append((sizes[name], pool.submit(self._read_or_nothing, name)))
                else:
                    yield ahead.popleft()[1].result()

    def _read_or_nothing(self, name: str) -> bytes:
        with suppress(FileNotFoundError):
            return self.read_bytes(name)
        return b""

    def write_bytes(self, name: str, content: bytes, attempts: int | None = None) -> None:
        """Writes a file, or replaces it."""
        self._try("written", name, lambda path: self._store.write(path, content), attempts)

    def create_bytes(self, name: str, content: bytes) -> bool:
        """Writes a file unless it exists; whether it did.

        Only one of several concurrent callers succeeds, if their contents differ.
        """
        return self._try("written", name, lambda path: self._store.create(path, content))

    def append_bytes(self, name: str, content: bytes) -> None:
        """Appends to a file on a local disk; after a failure, start another file."""
        store = self._store
        assert isinstance(store, Disk), self.url
        self._try("written", name, lambda path: store.append(path, content))

    def remove(self, *names: str) -> None:
        """Removes files; missing ones are ignored."""
        paths = [self.path(name) for name in names]
        self._try("removed", " ".join(names[:1]), lambda _: self._store.remove(*paths))

    def _try(
        self, verb: str, name: str, operation: Callable[[str], T], attempts: int | None = None
    ) -> T:
        """Runs an operation on a file's path, with retries on an object store."""
        last = 1 if self.is_local else attempts or _ATTEMPTS
        for attempt in range(1, last + 1):
            try:
                return operation(self.path(name))
            except Exception as error:  # botocore's errors share no root with OSError
                if isinstance(error, FileNotFoundError) and verb == "read":
                    raise
                place = f"{self.url}/{name}".rstrip("/")
                failure = explain_failure(f"{place} cannot be {verb}", error, self.is_local)
                if attempt == last or not failure.is_transient:
                    raise failure from error
            log.warning("%s; trying again", failure)
            time.sleep(_WAIT_SECONDS * 2 ** (attempt - 1))
        raise AssertionError(f"{attempts=}")

    @contextmanager
    def removing_empty_folder(self, folder: str) -> Iterator[None]:
        """Removes a local folder at the end if it is empty, and its parents if they are new."""
        path = Path(self.path(folder))
        created = [path, *(p for p in path.parents if not p.exists())] if self.is_local else []
        try:
            yield
        finally:
            for place in created:
                with suppress(OSError):
                    place.rmdir()

    def read_json(self, name: str) -> Any:
        """The content of a JSON file. Raises an InputError if it is damaged or missing."""
        try:
            return json.loads(self.read_bytes(name))
        except (ValueError, FileNotFoundError) as error:
            raise self._damaged(name, error) from None

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file, indented."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self.write_bytes(name, text.encode())

    def read_table(self, name: str) -> pa.Table:
        """The content of a Parquet file. Raises an InputError if it is damaged or missing."""
        try:
            return pq.read_table(io.BytesIO(self.read_bytes(name)))
        except (pa.ArrowException, FileNotFoundError) as error:
            raise self._damaged(name, error) from None

    def read_columns(self, name: str, columns: Sequence[str]) -> pa.Table:
        """Those of some columns that a Parquet file has. Raises as `read_table`."""

        def read(path: str) -> pa.Table:
            with self._store.open(path) as file, pq.ParquetFile(file) as parquet:
                known = parquet.schema_arrow.names
                return parquet.read(columns=[column for column in columns if column in known])

        try:
            return self._try("read", name, read)
        except (pa.ArrowException, FileNotFoundError) as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, error: Exception) -> InputError:
        reason = (str(error).splitlines() or [""])[0]
        return InputError(
            f"{self.url}/{name} is damaged or missing ({reason}); delete "
            f"{'the folder of its step' if '/' in name else 'that file'} and run its job again"
        )

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes a Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.write_bytes(name, buffer.getvalue())

    def upload(self, local: Path, folder: str) -> list[str]:
        """Copies a local folder into `folder`; returns the files' names."""
        names = []
        for path in sorted(p for p in local.rglob("*") if p.is_file()):
            names.append(f"{folder}/{path.relative_to(local).as_posix()}")
            self.write_bytes(names[-1], path.read_bytes())
        return names

    def download(self, names: list[str], folder: str, local: Path) -> None:
        """Copies files below `folder` to a local folder."""
        for name in names:
            target = local / Path(name).relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.read_bytes(name))


def _client_options(root: str) -> dict[str, Any]:
    """No listings cache, and one retry, for idle connections: `_try` has the others."""
    if "://" not in root:
        return {}
    options: dict[str, Any] = {"use_listings_cache": False}
    if root.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = {"retries": {"mode": "standard", "total_max_attempts": 2}}
    return options
