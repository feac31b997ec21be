"""A run's folder, on the local disk or in an object store.

Every write is whole or not at all: an object store puts an object in one step; on a disk the bytes
go to a hidden file beside the target, are synced, and take its name.
"""

import io
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from common.errors import InputError
from common.settings import Settings


class RunStorage:
    """The folder `<root>/<run>`; names are relative to it, with slashes."""

    def __init__(self, settings: Settings) -> None:
        """Opens the storage root without writing.

        Raises:
            InputError: the root's protocol is unknown, its bucket is absent or refuses access.
        """
        root = settings.storage.absolute_root
        try:
            self._fs, path = url_to_fs(
                root, **({"use_listings_cache": False} if "://" in root else {})
            )
        except (ValueError, ImportError) as error:
            raise InputError(f"DISTILL_STORAGE__ROOT={root!r} cannot be opened: {error}") from None
        self.is_local = "file" in self._fs.protocol
        self._path = f"{path.rstrip('/')}/{settings.run}"
        self.url = f"{root.rstrip('/')}/{settings.run}"
        if not self.is_local:
            self._check_bucket(root, path)
        else:
            self._check_folder(Path(path))

    @staticmethod
    def _check_folder(root: Path) -> None:
        existing = next(p for p in (root, *root.parents) if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            reason = "is no folder" if not existing.is_dir() else "cannot be written to"
            raise InputError(f"DISTILL_STORAGE__ROOT={str(root)!r}: {str(existing)!r} {reason}")

    def _check_bucket(self, root: str, path: str) -> None:
        bucket = path.split("/")[0]
        try:
            if not (self._fs.exists(path) or self._fs.exists(bucket)):
                raise FileNotFoundError("there is no such bucket")
        except Exception as error:  # botocore's errors share no root with OSError
            raise InputError(
                f"DISTILL_STORAGE__ROOT={root!r}: the bucket {bucket!r} cannot be read "
                f"({type(error).__name__}: {error}); check its name, the AWS_* variables and "
                "AWS_ENDPOINT_URL"
            ) from None

    def path(self, name: str = "") -> str:
        """The path of a name on the file system, without protocol."""
        return f"{self._path}/{name}" if name else self._path

    def exists(self, name: str) -> bool:
        """Whether a file of this name is there."""
        return bool(self._fs.isfile(self.path(name)))

    def list_files(self, folder: str) -> list[str]:
        """The names of all files below a folder, sorted; empty where there is no such folder."""
        paths = self._fs.find(self.path(folder))
        offset = len(str(self._fs._strip_protocol(self.path()))) + 1
        return sorted(str(p)[offset:] for p in paths if not Path(p).name.startswith("."))

    def read_bytes(self, name: str) -> bytes:
        """The content of a file."""
        return bytes(self._fs.cat_file(self.path(name)))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file, replacing one of that name."""
        if not self.is_local:
            self._fs.pipe_file(self.path(name), content)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        """Removes a file."""
        self._fs.rm_file(self.path(name))

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            InputError: it is damaged or missing.
        """
        try:
            return json.loads(self.read_bytes(name))
        except (ValueError, FileNotFoundError) as error:
            raise self._damaged(name, error) from None

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file, indented."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self.write_bytes(name, text.encode())

    def read_table(self, name: str) -> pa.Table:
        """The content of a Parquet file.

        Raises:
            InputError: it is damaged or missing.
        """
        try:
            return pq.read_table(io.BytesIO(self.read_bytes(name)))
        except (pa.ArrowException, FileNotFoundError) as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, error: Exception) -> InputError:
        reason = (str(error).splitlines() or [""])[0]
        return InputError(
            f"{self.url}/{name} is damaged or missing ({reason}); delete the folder of its step "
            "and run that job again"
        )

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes a Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.write_bytes(name, buffer.getvalue())

    def upload(self, local: Path, folder: str) -> list[str]:
        """Copies the files of a local folder; returns their names."""
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
