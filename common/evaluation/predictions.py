"""The predictions on storage: <root>/<run>/predictions/<system>.parquet.

A table's metadata has the fingerprint of its inputs: a rerun keeps those that match.
"""

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from common.data.testset import TestRow
from common.metrics.edits import find_edits
from common.records import PREDICTION_SCHEMA, Response
from common.run.manifest import Fingerprint, list_changes
from common.run.steps import PREDICTIONS
from common.run.storage import RunStorage

_KEY = b"distill.fingerprint"
_GROUP = 10_000


def write_predictions(
    storage: RunStorage,
    system: str,
    fingerprint: Fingerprint,
    rows: Sequence[TestRow],
    responses: Sequence[Response],
    has_edits: bool,
) -> None:
    """Writes a system's answers to the rows, with their edits if those are asked for."""
    table = make_prediction_table(rows, responses, has_edits)
    table = table.replace_schema_metadata({_KEY: json.dumps(fingerprint)})
    storage.write_table(_name(system), table)


def read_predictions(
    storage: RunStorage,
    system: str,
    fingerprint: Fingerprint,
    columns: Sequence[str] | None = None,
) -> pa.Table | None:
    """A system's table, or some of the columns that it has; None if it is of other inputs."""
    name = _name(system)
    if not storage.exists(name):
        return None
    table = storage.read_columns(name, columns) if columns else storage.read_table(name)
    found = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    is_same = isinstance(found, dict) and not list_changes(found, fingerprint)
    return table if is_same else None


def make_prediction_table(
    rows: Sequence[TestRow], responses: Sequence[Response], has_edits: bool = True
) -> pa.Table:
    """A table of `PREDICTION_SCHEMA` with a column for each group."""
    records = (
        {
            "id": row.id,
            "text": row.text,
            "references": row.references,
            "prediction": response.text,
            "edits": _list_edits(row.text, response.text) if has_edits else None,
            "tokens": response.tokens,
            "seconds": response.seconds,
            "error": response.error,
            "mean_logprob": response.mean_logprob,
            "least_logprob": response.least_logprob,
            "margin": response.margin,
            "agreement": response.agreement,
        }
        for row, response in zip(rows, responses, strict=True)
    )
    tables = [PREDICTION_SCHEMA.empty_table()]
    while group := list(islice(records, _GROUP)):
        tables.append(pa.Table.from_pylist(group, schema=PREDICTION_SCHEMA))
    table = pa.concat_tables(tables)
    for name in sorted({name for row in rows for name in row.groups}):
        column = pa.array([row.groups.get(name) for row in rows], pa.string())
        table = table.append_column(name, column)
    return table


def _list_edits(text: str, changed: str) -> list[dict[str, Any]]:
    return [edit._asdict() for edit in find_edits(text, changed)]


def _name(system: str) -> str:
    return f"{PREDICTIONS.folder}/{system}.parquet"
