"""Reads data files as streams of tables, with the wanted columns alone, and text as text.

The JSON readers of Ray Data and of the package datasets make dates of texts, and refuse columns of
mixed types.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from common.data.files import DataFile
from common.errors import DistillError, InputError, shorten, show

_CSV_BLOCK_BYTES = 64 << 20
"""A value longer than a block cannot be read."""
_JSON_BLOCK_BYTES = 8 << 20
_SAMPLE_ROWS = 100
"""The rows that tell the columns of JSON."""
_ROWS = 10_000
"""The rows of a table."""
_KINDS = {"json": "JSON", "csv": "CSV", "tsv": "TSV"}
_POINTER = b"version https://git-lfs.github.com/spec/"

Part = tuple[Sequence[str], pa.Table]
"""The names of all columns, and rows of those that are wanted."""
T = TypeVar("T")


def read_file(file: DataFile, wanted: Sequence[str]) -> Iterator[Part]:
    """The file's rows in their order, in parts.

    A part lacks a wanted column that the file does not have, or has twice.

    Raises:
        InputError: the file is damaged; the message names the line where it can.
    """
    try:
        for names, table in _READERS[file.format](file, wanted):
            table.validate(full=True)  # the readers take bytes that are not UTF-8 for strings
            yield names, table
    except DistillError:
        raise
    except Exception as error:  # pyarrow and each storage raise their own types
        reason = shorten(error) or type(error).__name__
        with suppress(Exception):
            reason = _explain_pointer(file) or reason
        kind = _KINDS.get(file.format, file.format)
        raise InputError(f"{file.name} cannot be read as {kind}: {reason}") from None


def _explain_pointer(file: DataFile) -> str:
    """What to do if a clone has only a pointer to the file; empty if it has the file."""
    with replace(file, compression=None).open() as content:
        is_pointer = content.read(len(_POINTER)) == _POINTER
    return "it is a pointer of Git LFS, not the file itself: run git lfs pull" if is_pointer else ""


def _group(items: Iterator[T]) -> Iterator[list[T]]:
    while group := list(islice(items, _ROWS)):
        yield group


def _choose(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if list(names).count(name) == 1]


def _read_parquet(file: DataFile, wanted: Sequence[str]) -> Iterator[Part]:
    with file.open() as content:
        parquet = pq.ParquetFile(content, page_checksum_verification=True)
        names = parquet.schema_arrow.names
        for batch in parquet.iter_batches(_ROWS, columns=_choose(names, wanted)):
            yield names, pa.Table.from_batches([batch])


def _read_arrow(file: DataFile, wanted: Sequence[str]) -> Iterator[Part]:
    """Both of Arrow's formats: the package datasets writes streams."""
    with file.open() as content:
        is_file = content.read(6) == b"ARROW1"
        content.seek(0)
        reader: Any = pa.ipc.open_file(content) if is_file else pa.ipc.open_stream(content)
        names = reader.schema.names
        chosen = _choose(names, wanted)
        count = reader.num_record_batches if is_file else 0
        batches = (reader.get_batch(i) for i in range(count)) if is_file else reader
        for batch in batches:
            yield names, pa.Table.from_batches([batch.select(chosen)])


def _read_csv(file: DataFile, wanted: Sequence[str]) -> Iterator[Part]:
    """All columns as text."""
    block = pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES)
    delimiter = "\t" if file.format == "tsv" else ","
    parse = pa.csv.ParseOptions(newlines_in_values=True, delimiter=delimiter)
    with file.open() as content:
        names = pa.csv.open_csv(content, read_options=block, parse_options=parse).schema.names
    chosen = _choose(names, wanted)
    if not chosen:
        yield names, pa.table({})
        return
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), include_columns=chosen
    )
    with file.open() as content:
        for batch in pa.csv.open_csv(content, block, parse, convert):
            yield names, pa.Table.from_batches([batch])


def _read_json(file: DataFile, wanted: Sequence[str]) -> Iterator[Part]:
    """JSON Lines, or one array.

    pyarrow reads plain columns of strings, fifteen times as fast; what it refuses is read here.
    """
    done = 0
    with suppress(pa.ArrowInvalid):
        for names, table in _read_strings(file, wanted):
            yield names, table
            done += table.num_rows
        return
    yield from _read_objects(file, wanted, done)


def _read_strings(file: DataFile, wanted: Sequence[str]) -> Iterator[Part]:
    """JSON Lines whose wanted columns are strings. Raises pyarrow.ArrowInvalid at another one."""
    with file.open() as content:
        first = list(islice(_iterate_objects(file, content), _SAMPLE_ROWS))
    names = list(dict.fromkeys(name for row in first for name in row))
    values = [row.get(name) for row in first for name in wanted]
    if not set(wanted) <= set(names) or not all(isinstance(v, str | None) for v in values):
        raise pa.ArrowInvalid("a wanted column is missing at first, or holds more than strings")
    schema = pa.schema([(name, pa.string()) for name in wanted])
    parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    block = pa.json.ReadOptions(block_size=_JSON_BLOCK_BYTES)
    with file.open() as content:
        for batch in pa.json.open_json(content, block, parse):
            batch.validate(full=True)  # UTF-8
            yield names, pa.Table.from_batches([batch])


def _read_objects(file: DataFile, wanted: Sequence[str], done: int) -> Iterator[Part]:
    """All rows but the first that are `done`."""
    names: dict[str, None] = {}
    with file.open() as content:
        for rows in _group(islice(_iterate_objects(file, content), done, None)):
            names |= dict.fromkeys(name for row in rows for name in row)
            columns = {name: [row.get(name) for row in rows] for name in wanted if name in names}
            arrays = {name: _to_array(file, name, values) for name, values in columns.items()}
            yield list(names), pa.table(arrays)


def _iterate_objects(file: DataFile, content: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    lines = ((n, line) for n, line in enumerate(content, 1) if line.strip(b"\xef\xbb\xbf \t\r\n"))
    for number, line in lines:
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if number == 1 and line.lstrip().startswith(b"["):
            rest = b"".join(line for _, line in lines)
            rows = _parse(file, 1, line + rest)
            yield from (_check_object(file, f"row {n}", row) for n, row in enumerate(rows, 1))
            return
        yield _check_object(file, f"line {number}", _parse(file, number, line.rstrip()))


def _check_object(file: DataFile, where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{file.name}: {where} should be one JSON object, not {show(row)}")
    return row


def _parse(file: DataFile, line: int, content: bytes) -> Any:
    if content.startswith(_POINTER):
        raise ValueError("it is a pointer")  # `read_file` says of what
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        raise InputError(
            f"{file.name} cannot be read as JSON: {place}: {error.msg}; it should have an object "
            "a line, or be one array of objects"
        ) from None
    except (ValueError, RecursionError) as error:  # no UTF-8; a number or a nesting without end
        reason = shorten(error)
        raise InputError(f"{file.name} cannot be read as JSON: line {line}: {reason}") from None


def _to_array(file: DataFile, name: str, values: list[Any]) -> pa.Array:
    if any(isinstance(value, list) for value in values):  # other rows may have a single value
        values = [[value] if isinstance(value, str) else value for value in values]
    try:
        return pa.array(values)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{file.name}: the column {name!r} has {show(error.object)}, which holds half of a "
            "character (a lone surrogate); repair that text"
        ) from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        raise InputError(
            f"{file.name}: the column {name!r} holds values of several kinds, not text; name "
            "another column, or convert it to text"
        ) from None


def _read_text(file: DataFile, wanted: Sequence[str]) -> Iterator[Part]:
    """A text per line, in the column `text`."""
    if reason := _explain_pointer(file):
        raise ValueError(reason)
    with file.open() as content:
        texts = (line.decode("utf-8-sig").rstrip("\r\n") for line in content if line.strip())
        for lines in _group(texts):
            table = pa.table({"text": pa.array(lines, pa.string())})
            yield ["text"], table.select(_choose(["text"], wanted))


_READERS = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_csv,
    "text": _read_text,
}
