"""Where bytes are kept: the local disk, or an object store. Paths have no protocol.

No partial file is ever read as whole. An object store puts an object in one step, and one GET reads
one version of it; on a disk the bytes go to a hidden file beside the target, are synced, and take
its name. The two raise the system's or the client's own errors, of which `explain_failure` makes
one kind.
"""

import errno
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import StorageError

_SETTLE_SECONDS = 1.0
"""How long two that create the same object, in a store without conditional writes, may be apart."""
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
    """`what` could not be done, and the system's or the client's error, as one kind of error."""
    number = getattr(error, "errno", None)
    is_passing = not (
        isinstance(error, _PERMANENT)
        or number in _PERMANENT_NUMBERS
        or type(error).__name__ in _PERMANENT_NAMES
    )
    if number in (errno.ENOSPC, errno.EDQUOT):
        fix = "make room there and run again"
    elif is_passing:
        fix = "run again when the storage works"
    else:
        place = "the folder" if is_local else "the bucket, the AWS_* variables"
        fix = f"check {place} and who may write there"
    reason = str(error.__cause__ or getattr(error, "strerror", None) or error).splitlines()[:1]
    about = ": ".join([type(error).__name__, *reason])
    return StorageError(f"{what} ({about}); {fix}", is_passing)


class Disk:
    """Files below any local folder."""

    def read(self, path: str) -> bytes:
        """The content of a file."""
        return Path(path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        """Writes a file, replacing one of that name."""
        temporary = _write_beside(Path(path), content)
        try:
            temporary.replace(path)
            _sync_folder(temporary.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def create(self, path: str, content: bytes) -> bool:
        """Writes a file unless there is one of that name; whether it did."""
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
        """Adds to a file's end and syncs; what a failure has written of it is cut off again."""
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
        """The paths of all files below a folder, and their sizes; hidden ones are left out."""
        sizes = {}
        for place, _, names in os.walk(folder, onerror=_raise_unless_missing):
            for name in names:
                path = Path(place, name)
                with suppress(FileNotFoundError):  # removed meanwhile
                    if not name.startswith("."):
                        sizes[str(path)] = path.stat().st_size
        return sizes

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        return Path(path).is_file()

    def remove(self, *paths: str) -> None:
        """Removes files that may be there."""
        for path in paths:
            Path(path).unlink(missing_ok=True)


class ObjectStore:
    """Objects, through fsspec."""

    def __init__(self, fs: Any) -> None:
        """`fs` is an fsspec file system without a cache of listings."""
        self._fs = fs
        # s3fs reads big objects by ranges, which may belong to two versions, and asks for the size
        self._whole = {"max_concurrency": 1} if "s3" in fs.protocol else {}

    def read(self, path: str) -> bytes:
        """The content of an object."""
        return bytes(self._fs.cat_file(path, **self._whole))

    def write(self, path: str, content: bytes) -> None:
        """Writes an object, replacing one of that name."""
        self._fs.pipe_file(path, content)

    def create(self, path: str, content: bytes) -> bool:
        """Writes an object unless there is one of that name; whether it did."""
        try:
            self._fs.pipe_file(path, content, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or _http_status(error) == 412:
                return self._holds(path, content)  # an earlier try whose answer was lost
            if error.errno == errno.ENOSYS:
                return self._create_by_turns(path, content)
            raise
        return True

    def _create_by_turns(self, path: str, content: bytes) -> bool:
        """The same where a store has no conditional writes: the last writer wins."""
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
        """The paths of all objects below a folder, and their sizes; hidden ones are left out."""
        found = self._fs.find(folder, detail=True)
        return {
            str(path): int(about["size"])
            for path, about in found.items()
            if not Path(path).name.startswith(".")
        }

    def exists(self, path: str) -> bool:
        """Whether an object is there."""
        try:  # fsspec's `isfile` says no when the store fails
            return bool(self._fs.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def remove(self, *paths: str) -> None:
        """Removes objects that may be there; of many, one that resists stays without an error."""
        if len(paths) > 1:
            with suppress(OSError):  # not every store can remove many in one call
                for start in range(0, len(paths), 1000):
                    self._fs.rm(list(paths[start : start + 1000]))
                return
        for path in paths:
            self._fs.rm_file(path)


def _write_beside(target: Path, content: bytes) -> Path:
    """Writes a hidden file beside the target and syncs it."""
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
    """Makes a folder and its parents, so that they outlive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _http_status(error: OSError) -> int:
    """What the server answered, where s3fs has made an OSError of it; 0 otherwise."""
    response = getattr(error.__cause__, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
