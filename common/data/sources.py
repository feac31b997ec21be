"""Reads a split of a data set: built in, from files on any storage, or from the hub."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from common.builtin.mistakes import make_rows
from common.data.files import DataFile, find_files, is_data_name
from common.data.formats import Part, read_file
from common.data.hub import load_from_hub
from common.data.place import INPUTS, find_place
from common.errors import InputError
from common.sections import BUILTIN
from common.settings import Settings


@dataclass(frozen=True)
class Shard:
    """What one task reads: a file, or a whole split that is built in or on the hub."""

    name: str
    split: str
    file: DataFile | None = None

    def without_secrets(self) -> "Shard":
        """The shard to send to a worker: others can read what Ray sends."""
        if self.file is None:
            return self
        place = replace(self.file.place, storage_options={})
        return replace(self, file=replace(self.file, place=place))


def read_tables(
    settings: Settings, split: str, required: Sequence[str], optional: Sequence[str]
) -> Iterator[pa.Table]:
    """The rows of a split as tables of strings, lists of strings, and integers.

    They have the required columns, and the optional ones that exist.

    Raises:
        InputError: the source is missing, unreadable or empty, or lacks a required column.
    """
    is_empty = True
    for shard in list_shards(settings, split):
        for table in read_shard(settings, shard, required, optional):
            is_empty = False
            yield table
    if is_empty:
        raise find_place(settings, split).refuse("has no rows")


def list_shards(settings: Settings, split: str) -> list[Shard]:
    """What a split consists of. Raises an InputError if the source is missing or unreadable."""
    place = find_place(settings, split)
    if place.url == BUILTIN:
        return [Shard(f"built-in {split} split", split)]
    if (files := find_files(place, split)) is not None:
        return [Shard(file.name, split, file) for file in files]
    if _is_hub_name(place.url):
        return [Shard(f"{place.url} ({split} split)", split)]
    raise place.refuse("does not exist")


def read_shard(
    settings: Settings,
    shard: Shard,
    required: Sequence[str],
    optional: Sequence[str],
    kept: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """The rows of a shard as tables; the `kept` columns are of any type, and required, too.

    Raises an InputError, see `read_tables`.
    """
    # a group may be the reference's column
    wanted = list(dict.fromkeys([*required, *optional, *kept]))
    converted = {*required, *optional}
    for names, table in _read_parts(settings, shard, wanted):
        for column in (*required, *kept):
            if column not in table.column_names:
                raise _explain_missing(shard.name, names, column)
        yield pa.table(
            {
                name: _convert(shard.name, table, name) if name in converted else table[name]
                for name in table.column_names
            }
        )


def _read_parts(settings: Settings, shard: Shard, wanted: Sequence[str]) -> Iterator[Part]:
    place = find_place(settings, shard.split)
    split = (settings.predict.split or "train") if shard.split == INPUTS else shard.split
    if shard.file is not None:
        yield from read_file(replace(shard.file, place=place), wanted)
    elif place.url == BUILTIN:
        table = pa.Table.from_pylist(list(make_rows(split)))
        yield table.column_names, table.select([n for n in wanted if n in table.column_names])
    else:
        data = settings.data
        if place.url != data.source:  # whose configuration and revision they are
            data = data.model_copy(update={"config": None, "revision": None})
        yield from load_from_hub(place, data, split, wanted)


def _is_hub_name(source: str) -> bool:
    is_name = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source) is not None
    return is_name and not is_data_name(source)


def _explain_missing(place: str, names: Sequence[str], column: str) -> InputError:
    count = list(names).count(column)
    return InputError(
        f"{place} has {'no column' if count == 0 else f'{count} columns'} {column!r}; it has "
        f"{', '.join(names)}: set DISTILL_DATA__TEXT_COLUMN or DISTILL_DATA__REFERENCE_COLUMN, or "
        "the task's [columns]"
    )


def _convert(place: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of strings, lists of strings, or integers, which classes may be.

    Raises an InputError if it is of another type.
    """
    column = table[name]
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or kind == pa.binary_view():
        try:
            return column.cast(pa.large_binary()).cast(pa.large_string())
        except pa.ArrowInvalid:
            raise InputError(
                f"{place}: the column {name!r} holds bytes that are not text in UTF-8; name "
                "another column, or convert it"
            ) from None
    if pa.types.is_null(kind) or pa.types.is_dictionary(kind) or kind == pa.string_view():
        return column.cast(pa.string())
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if pa.types.is_null(inner):
        return column.cast(pa.list_(pa.string()))
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        raise InputError(
            f"{place}: the column {name!r} holds {kind}, not text; name another column, or "
            "convert it to text"
        )
    return column
