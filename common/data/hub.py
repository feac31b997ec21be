"""Loads a data set from the Hugging Face hub."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from common.data.formats import Part
from common.data.place import Place
from common.errors import DistillError, InputError, shorten
from common.sections import DataSettings

_ROWS = 10_000


def load_from_hub(
    place: Place, data: DataSettings, split: str, wanted: Sequence[str]
) -> Iterator[Part]:
    """The rows of a split, in parts; the package datasets maps them from its cache.

    Raises:
        InputError: there is no such data set, configuration, revision or split.
        DistillError: the hub cannot be reached.
    """
    import datasets  # slow to import

    from common.hub import is_transient

    try:
        dataset = datasets.load_dataset(place.url, data.config, split=split, revision=data.revision)
    except Exception as error:  # the hub client raises many types
        reason = f"{type(error).__name__}: {shorten(error)}"
        if is_transient(error):
            raise DistillError(
                f"{place.variable}={place.url!r} could not be fetched: {reason}; run again when "
                "the hub can be reached"
            ) from None
        fix = "set DISTILL_DATA__CONFIG: " if "onfig name is missing" in reason else ""
        raise InputError(
            f"{place.variable}={place.url!r} is neither a local file or folder, nor can its "
            f"{split!r} split be loaded from the Hugging Face hub: {fix}{reason}"
        ) from None
    table, names = dataset.data.table, dataset.column_names
    chosen = [name for name in wanted if name in names]
    for start in range(0, table.num_rows, _ROWS):
        part = table.slice(start, _ROWS).select(chosen)
        yield names, _name_classes(part, dataset.features)


def _name_classes(table: pa.Table, features: Any) -> pa.Table:
    """The table with the names of classes instead of their numbers."""
    for place, name in enumerate(table.column_names):
        if hasattr(features[name], "int2str"):
            numbers = table[name].to_pylist()
            names = [None if n is None or n < 0 else features[name].int2str(n) for n in numbers]
            table = table.set_column(place, name, pa.array(names, pa.string()))
    return table
