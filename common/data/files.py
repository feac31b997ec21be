"""Finds a source's data files on any storage, and the split that each belongs to."""

import io
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa

from common.data.place import INPUTS, Place
from common.errors import shorten

TABLES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
}
"""The formats by suffix."""
_TEXT = {".txt": "text"}
"""A file of lines is data only where there are no tables: it is often a note or a licence."""
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The words that name a split, as in `datasets.data_files`."""
_NUMBERED = re.compile(r"(.*)-\d{5}-of-(\d{5})(\D.*)?")
"""The name of a file of several, as the hub and the package datasets number them."""
_MOST_NAMES = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFile:
    """A file of rows; `path` has no protocol, `compression` is pyarrow's name or None."""

    place: Place
    path: str
    format: str
    compression: str | None

    @property
    def name(self) -> str:
        """The path for people, with its protocol."""
        return str(self.place.open()[0].unstrip_protocol(self.path))

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The content, without compression."""
        with self.place.open()[0].open(self.path, "rb") as file:
            if self.compression is None:
                yield file
                return
            raw = pa.PythonFile(file, mode="r")
            with pa.CompressedInputStream(raw, self.compression) as stream:
                yield io.BufferedReader(stream)


def find_files(place: Place, split: str) -> list[DataFile] | None:
    """The files of a split, or all `INPUTS`; None if there is no such file or folder.

    The names of folders, else those of files, say what belongs to which split. Where none does, all
    files are train, or those of a source for the test rows alone.

    Raises:
        InputError: the source cannot be read, holds no data, or lacks the split; or files seem to
            belong to several splits and cannot be told apart.
    """
    try:
        fs, path = place.open()
        is_file = fs.isfile(path)
        paths = [path] if is_file else sorted(fs.find(path))
        if not paths and not fs.exists(path):
            return None
    except Exception as error:  # each storage raises its own types
        raise place.refuse(f"cannot be read: {type(error).__name__}: {shorten(error)}") from None
    if "file" in fs.protocol and (special := [p for p in paths if _is_special(Path(p))]):
        raise place.refuse(f"has pipes or devices, which may never end: {_join(special)}")
    files = list(_choose_data(fs, paths, place, is_named=is_file))
    _warn_of_missing(place, [] if is_file else files)
    if split == INPUTS:
        return files
    named = {} if is_file else _name_splits(files, path, place)
    chosen = [file for file in files if named.get(file.path) == split]
    if not named:
        if split == "test" and not place.is_for_test:
            raise place.refuse(
                "has no test split: keep it in a folder with files named train* and test*, or set "
                "DISTILL_DATA__TEST_SOURCE"
            )
        return files
    if not chosen:
        hint = "; or set DISTILL_DATA__TEST_SOURCE" if split == "test" else ""
        raise place.refuse(f"has no file whose name says that it is of the {split} split{hint}")
    unnamed = [file.path for file in files if file.path not in named]
    _warn(place, unnamed, "their names tell no split, as those of others do")
    return chosen


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _warn_of_missing(place: Place, files: list[DataFile]) -> None:
    """Warns of files that are missing among numbered ones."""
    found: dict[tuple[str, int, str], int] = {}
    for file in files:
        if match := _NUMBERED.fullmatch(PurePosixPath(file.path).name):
            group = (match[1], int(match[2]), match[3])
            found[group] = found.get(group, 0) + 1
    for (start, count, end), files_found in found.items():
        if files_found < count:
            log.warning(
                "%s=%r: has only %d of the %d files %s-…-of-%05d%s; the rows of the others are "
                "missing",
                *(place.variable, place.url, files_found, count, start, count, end),
            )


def _choose_data(fs: Any, paths: Iterable[str], place: Place, is_named: bool) -> Iterator[DataFile]:
    """The files that have rows; warns of others, but not of hidden files or metadata."""
    seen = [p for p in paths if is_named or not _is_hidden(p, fs._strip_protocol(place.url))]
    formats = {path: _find_format(path) for path in seen}
    known = TABLES if any(kind in TABLES.values() for kind, _ in formats.values()) else _TEXT
    left_out = [path for path, (kind, _) in formats.items() if kind not in known.values()]
    if len(left_out) == len(seen):
        what = f"; it has {_join(seen)}" if seen else ""
        raise place.refuse(f"holds no parquet, jsonl, csv, tsv, arrow or txt file{what}")
    _warn(place, left_out, "they are not of a format that is read")
    for path, (kind, compression) in formats.items():
        if path not in left_out:
            yield DataFile(place, path, kind, compression)


def _find_format(path: str) -> tuple[str, str | None]:
    """The format and the compression that a file's name tells; "" if it is not data."""
    plain = PurePosixPath(path.lower())
    compression = _COMPRESSIONS.get(plain.suffix)
    if compression:
        plain = plain.with_suffix("")
    if plain.suffix in (".parquet", ".arrow") and compression:
        return "", None
    return (TABLES | _TEXT).get(plain.suffix, ""), compression


def is_data_name(name: str) -> bool:
    """Whether a name is that of a file that is read."""
    return bool(_find_format(name)[0])


def _is_hidden(path: str, folder: str) -> bool:
    """Whether a file is hidden, or the metadata of a dataset library."""
    parts = _get_parts(path, folder)
    return any(part.startswith((".", "_")) for part in parts) or parts[-1] in _METADATA


def _get_parts(path: str, folder: str) -> tuple[str, ...]:
    return PurePosixPath(path[len(folder) :].lower().lstrip("/")).parts


def _name_splits(files: list[DataFile], folder: str, place: Place) -> dict[str, str]:
    """The splits of the files, by path; empty if no name tells one."""
    parts = {file.path: _get_parts(file.path, folder) for file in files}
    told = {p: _find_splits(found[:-1]) or _find_splits(found[-1:]) for p, found in parts.items()}
    if both := [path for path, splits in told.items() if len(splits) > 1]:
        raise place.refuse(
            f"has files that may be of several splits: {_join(both)}; rename them to train* "
            "and test*, or set DISTILL_DATA__TEST_SOURCE"
        )
    if any(told.values()):
        return {path: splits.pop() for path, splits in told.items() if splits}
    likely = [path for path, found in parts.items() if re.search("test|eval", found[-1])]
    if likely and len(likely) < len(files):
        raise place.refuse(
            f"seems to hold train and test rows that cannot be told apart: {_join(likely)} may be "
            "test rows; rename the files to train* and test*, or set DISTILL_DATA__TEST_SOURCE"
        )
    return {}


def _find_splits(parts: Iterable[str]) -> set[str]:
    words = {word for part in parts for word in re.split(r"[^a-z]+", part)}
    return {split for split, names in _SPLITS.items() if words & set(names)}


def _warn(place: Place, paths: list[str], reason: str) -> None:
    if paths:
        log.warning("%s=%r: left out %s: %s", place.variable, place.url, _join(paths), reason)


def _join(paths: list[str]) -> str:
    names = [PurePosixPath(path).name for path in paths[:_MOST_NAMES]]
    return ", ".join(names) + (
        f" and {len(paths) - len(names)} more" if paths[len(names) :] else ""
    )
