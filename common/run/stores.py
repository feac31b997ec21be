"""Atomic reads and writes on the local disk and in object stores. Paths have no protocol.

An object store writes and reads one version of an object atomically. On a disk, the bytes go to a
hidden file beside the target, which is synced and renamed. Both raise errors of the system or of
the client; `explain_failure` converts them to a StorageError.
"""

import errno
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import StorageError

_SETTLE_SECONDS = 1.0
"""In a store without conditional writes, the longest lag between two concurrent creations."""
_PERMANENT = (
    PermissionError,
    FileNotFoundError,  # of a write: the bucket
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    ValueError,
    TypeError,
)
_PERMANENT_NUMBERS = (errno.EROFS, errno.ENAMETOOLONG, errno.ENOSYS)
_PERMANENT_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
"""Errors of botocore, which is not imported for a local folder."""


def explain_failure(what: str, error: Exception, is_local: bool) -> StorageError:
    """Converts an error of the system or of the client; `what` says what has failed."""
    number = getattr(error, "errno", None)
    is_transient = not (
        isinstance(error, _PERMANENT)
        or number in _PERMANENT_NUMBERS
        or type(error).__name__ in _PERMANENT_NAMES
    )
    if number in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some space there and run again"
    elif is_transient:
        fix = "run again when the storage works"
    else:
        place = "the folder" if is_local else "the bucket, the AWS_* variables"
        fix = f"check {place} and who may write there"
    reason = str(error.__cause__ or getattr(error, "strerror", None) or error).splitlines()[:1]
    about = ": ".join([type(error).__name__, *reason])
    return StorageError(f"{what} ({about}); {fix}", is_transient)


class Disk:
    """Files on a local disk."""

    def read(self, path: str) -> bytes:
        """The content of a file."""
        return Path(path).read_bytes()

    def open(self, path: str) -> BinaryIO:
        """A file, to read parts of it."""
        return Path(path).open("rb")

    def write(self, path: str, content: bytes) -> None:
        """Writes a file, or replaces it."""
        temporary = _write_beside(Path(path), content)
        try:
            temporary.replace(path)
            _sync_folder(temporary.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def create(self, path: str, content: bytes) -> bool:
        """Writes a file unless it exists; whether it did."""
        temporary = _write_beside(Path(path), content)
        try:
            Path(path).hardlink_to(temporary)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return _create_in_place(Path(path), content)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def append(self, path: str, content: bytes) -> None:
        """Appends to a file and syncs it; a partial append is truncated."""
        target = Path(path)
        is_new = not target.exists()
        _make_folder(target.parent)
        with target.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                    if is_new:
                        target.unlink()
                raise
        if is_new:
            _sync_folder(target.parent)

    def find(self, folder: str) -> dict[str, int]:
        """The paths of all files below a folder and their sizes in bytes, without hidden ones."""
        sizes = {}
        for place, _, names in os.walk(folder, onerror=_raise_unless_missing):
            for name in names:
                path = Path(place, name)
                with suppress(FileNotFoundError):  # removed meanwhile
                    if not name.startswith("."):
                        sizes[str(path)] = path.stat().st_size
        return sizes

    def exists(self, path: str) -> bool:
        """Whether a file exists."""
        return Path(path).is_file()

    def remove(self, *paths: str) -> None:
        """Removes files; missing ones are ignored."""
        for path in paths:
            Path(path).unlink(missing_ok=True)


class WatchedFolder:
    """A folder on a local disk. While it is open, no later one of its name is taken for it."""

    def __init__(self, path: str) -> None:
        self._path, self._descriptor = path, os.open(path, os.O_RDONLY)

    @property
    def is_there(self) -> bool:
        """Whether it has not been deleted."""
        with suppress(OSError):
            return os.path.samestat(Path(self._path).stat(), os.fstat(self._descriptor))
        return False

    def close(self) -> None:
        """Stops watching."""
        os.close(self._descriptor)


class ObjectStore:
    """Objects in an fsspec file system without a listings cache."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        # s3fs reads big objects in ranges, which may belong to two versions
        self._whole = {"max_concurrency": 1} if "s3" in fs.protocol else {}

    def read(self, path: str) -> bytes:
        """The content of an object."""
        return bytes(self._fs.cat_file(path, **self._whole))

    def open(self, path: str) -> BinaryIO:
        """An object, to read parts of it."""
        return self._fs.open(path, "rb", cache_type="none")  # type: ignore[no-any-return]

    def write(self, path: str, content: bytes) -> None:
        """Writes an object, or replaces it."""
        self._fs.pipe_file(path, content)

    def create(self, path: str, content: bytes) -> bool:
        """Writes an object unless it exists; whether it did."""
        try:
            self._fs.pipe_file(path, content, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or _http_status(error) == 412:
                return self._holds(path, content)  # an earlier attempt whose reply was lost
            if error.errno == errno.ENOSYS:
                return self._create_unconditionally(path, content)
            raise
        return True

    def _create_unconditionally(self, path: str, content: bytes) -> bool:
        """For stores without conditional writes: the last writer wins."""
        if self.exists(path):
            return self._holds(path, content)
        self.write(path, content)
        time.sleep(_SETTLE_SECONDS)
        return self._holds(path, content)

    def _holds(self, path: str, content: bytes) -> bool:
        try:
            return self.read(path) == content
        except FileNotFoundError:
            return False

    def find(self, folder: str) -> dict[str, int]:
        """The paths of all objects below a folder and their sizes in bytes, without hidden ones."""
        found = self._fs.find(folder, detail=True)
        return {
            str(path): int(about["size"])
            for path, about in found.items()
            if not Path(path).name.startswith(".")
        }

    def exists(self, path: str) -> bool:
        """Whether an object exists."""
        try:  # fsspec's `isfile` is False when the store fails
            return bool(self._fs.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def remove(self, *paths: str) -> None:
        """Removes objects; missing ones are ignored, and so are failures if there are several."""
        if len(paths) > 1:
            with suppress(OSError):  # not every store supports bulk removal
                for start in range(0, len(paths), 1000):
                    self._fs.rm(list(paths[start : start + 1000]))
                return
        for path in paths:
            self._fs.rm_file(path)


def _write_beside(target: Path, content: bytes) -> Path:
    """Writes and syncs a hidden file beside the target."""
    _make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _create_in_place(target: Path, content: bytes) -> bool:
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _make_folder(folder: Path) -> None:
    """Makes a folder and its parents, and syncs them."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system supports it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _http_status(error: OSError) -> int:
    """The HTTP status behind an OSError of s3fs; 0 if there is none."""
    response = getattr(error.__cause__, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
