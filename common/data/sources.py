"""Reads a split of a dataset: built in, from the Hugging Face hub, or from files on any storage."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NoReturn

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from fsspec.core import url_to_fs

from common.builtin.mistakes import make_rows
from common.errors import DistillError, InputError
from common.records import get_rows
from common.settings import BUILTIN, Settings

_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
_CSV_BLOCK_BYTES = 64 << 20
"""A value longer than a block cannot be read."""


def read_split(
    settings: Settings, split: str, required: Sequence[str], optional: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of a split, with the required columns and the optional ones that exist."""
    variable, source = name_source(settings, split)
    if source == BUILTIN:
        tables = [(f"built-in {split} split", pa.Table.from_pylist(list(make_rows(split))))]
    else:
        found = _find_files(variable, source, split)
        tables = found if found is not None else _load_from_hub(variable, source, split)
    tables = [(place, table) for place, table in tables if table.num_rows] or tables[:1]
    if not tables[0][1].num_rows:
        raise InputError(f"{tables[0][0]} has no rows ({variable}={source!r})")
    rows = []
    for place, table in tables:
        wanted = [*required, *(name for name in optional if name in table.column_names)]
        columns = {name: _get_column(place, table, name) for name in wanted}
        rows += get_rows(pa.table(columns)) if columns else []
    return rows


def name_source(settings: Settings, split: str) -> tuple[str, str]:
    """The variable and the value of the setting that names a split's source."""
    if split == "test" and settings.data.test_source is not None:
        return "DISTILL_DATA__TEST_SOURCE", settings.data.test_source
    return "DISTILL_DATA__SOURCE", settings.data.source


def _get_column(place: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of strings, lists of strings, or integers, which classes may be.

    Raises:
        InputError: the column is missing, duplicate, or of another type.
    """
    count = table.column_names.count(name)
    if count != 1:
        raise InputError(
            f"{place} has {'no column' if count == 0 else f'{count} columns'} {name!r}; it has "
            f"{', '.join(table.column_names)}: set DISTILL_DATA__TEXT_COLUMN or "
            "DISTILL_DATA__REFERENCE_COLUMN, or the task's [columns]"
        )
    column = table[name]
    kind = column.type
    if pa.types.is_null(kind) or pa.types.is_dictionary(kind) or kind == pa.string_view():
        return column.cast(pa.string())
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if pa.types.is_null(inner):
        return column.cast(pa.list_(pa.string()))
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        what = "values of several kinds" if pa.types.is_binary(kind) else str(kind)
        raise InputError(
            f"{place}: the column {name!r} holds {what}, not text; name another column, or "
            "convert it to text"
        )
    return column


def _find_files(variable: str, source: str, split: str) -> list[tuple[str, pa.Table]] | None:
    """The tables of a split with their paths; None if the source is a dataset on the hub."""
    own_source = variable == "DISTILL_DATA__TEST_SOURCE"
    try:
        fs, path = url_to_fs(source)
        only_file = fs.isfile(path)
        found = [path] if only_file else sorted(p for p in fs.find(path) if _is_data(p))
    except Exception as error:  # each storage raises its own types
        _refuse(variable, source, f"cannot be read: {type(error).__name__}: {error}")
    if not found and not fs.exists(path) and _is_hub_name(source):
        return None
    if not found:
        reason = "holds no parquet, jsonl or csv file" if fs.exists(path) else "does not exist"
        _refuse(variable, source, reason)
    named = {s: [p for p in found if _is_of_split(p, path, s)] for s in ("train", "test")}
    if only_file or not (named["train"] or named["test"]):
        if split == "test" and not own_source:
            _refuse(
                variable,
                source,
                "has no test split: keep it in a folder with files named train* and test*, "
                "or set DISTILL_DATA__TEST_SOURCE",
            )
        chosen = found
    else:
        chosen = named[split]
    if not chosen:
        hint = "; or set DISTILL_DATA__TEST_SOURCE" if split == "test" else ""
        _refuse(variable, source, f"has no file whose name starts with {split!r}{hint}")
    return [(str(fs.unstrip_protocol(p)), _read_file(fs, p)) for p in chosen]


def _refuse(variable: str, source: str, reason: str) -> NoReturn:
    raise InputError(f"{variable}: {source!r} {reason}")


def _is_hub_name(source: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source) is not None and not source.endswith(
        _SUFFIXES
    )


def _is_data(path: str) -> bool:
    """Whether a file has rows; not if it is hidden or a dataset library's metadata."""
    name = PurePosixPath(path).name.lower()
    return (
        name.endswith(_SUFFIXES)
        and not name.startswith((".", "_"))
        and name not in ("dataset_info.json", "dataset_infos.json", "state.json")
    )


def _is_of_split(path: str, folder: str, split: str) -> bool:
    parts = PurePosixPath(path[len(folder) :].lstrip("/")).parts
    return any(re.match(rf"{split}(?![a-z])", part.lower()) for part in parts)


def _read_file(fs: Any, path: str) -> pa.Table:
    readers: dict[str, Callable[[BinaryIO], pa.Table]] = {
        ".parquet": pa.parquet.read_table,
        ".csv": _read_csv,
    }
    suffix = PurePosixPath(path).suffix.lower()
    try:
        with fs.open(path, "rb") as file:
            return readers.get(suffix, _read_json_lines)(file)
    except DistillError:
        raise
    except Exception as error:  # pyarrow and each storage raise their own types
        kind = suffix.removeprefix(".")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as {kind}: {reason}") from None


def _read_csv(file: BinaryIO) -> pa.Table:
    """A csv file with all columns as text."""
    block = pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES)
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    names = pa.csv.open_csv(file, read_options=block, parse_options=parse).schema.names
    file.seek(0)
    options = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return pa.csv.read_csv(file, read_options=block, convert_options=options, parse_options=parse)


def _read_json_lines(file: BinaryIO) -> pa.Table:
    """JSON Lines; pyarrow would convert text to dates and refuse columns of mixed types."""
    rows = [json.loads(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every line should be one JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _to_column([row.get(name) for row in rows]) for name in names})


def _to_column(values: list[Any]) -> pa.Array:
    if any(isinstance(value, list) for value in values):  # other rows may have a single value
        values = [[value] if isinstance(value, str) else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([json.dumps(value) for value in values]).cast(pa.binary())


def _load_from_hub(variable: str, source: str, split: str) -> list[tuple[str, pa.Table]]:
    import datasets  # slow to import

    from common.hub import is_transient

    try:
        table = _name_classes(datasets.load_dataset(source, split=split))
        return [(f"{source} ({split} split)", table)]
    except Exception as error:  # the hub client raises many types
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if is_transient(error):
            raise DistillError(
                f"{variable}={source!r} could not be fetched: {reason}; run again when "
                "the hub can be reached"
            ) from None
        raise InputError(
            f"{variable}={source!r} is neither a local file or folder, nor can its "
            f"{split!r} split be loaded from the Hugging Face hub: {reason}"
        ) from None


def _name_classes(dataset: Any) -> pa.Table:
    """The dataset's table, with the names of classes instead of their numbers."""
    table: pa.Table = dataset.data.table
    for place, (name, feature) in enumerate(dataset.features.items()):
        if hasattr(feature, "int2str"):
            numbers = table[name].to_pylist()
            names = [None if n is None or n < 0 else feature.int2str(n) for n in numbers]
            table = table.set_column(place, name, pa.array(names, pa.string()))
    return table
