"""The rows that jobs exchange, and their Arrow schemas."""

import hashlib
import json
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pyarrow as pa

Float32 = Annotated[float, pa.float32()]


@dataclass(frozen=True)
class Example:
    """An unlabelled text; `id` is the hash of the text alone."""

    id: str
    text: str


@dataclass(frozen=True)
class LabelRow:
    """The outcome of an example.

    `status` is ok (`label` is set), failed (no usable response: `error` says why) or filtered (a
    label rule rejects the response: `error` names the rule). `message` is for people. `reasoning`
    is what the teacher wrote before its response; its tokens are part of the completion's.
    `agreement` is the share of the samples that gave this label; `labels` are all that they gave,
    the most frequent first, and `shares` their shares of those that passed the rules; None of one
    sample. `cached_tokens` are the prompt tokens that the provider's cache held. The last four
    columns are log-probabilities, an item per response token; None unless requested and offered.
    """

    id: str
    text: str
    status: str
    label: str | None = None
    error: str | None = None
    message: str | None = None
    response: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    agreement: float | None = None
    samples: int = 0
    labels: list[str] | None = None
    shares: list[Float32] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    attempts: int = 0
    seconds: float = 0.0
    tokens: list[str] | None = None
    token_logprobs: list[Float32 | None] | None = None
    top_tokens: list[list[str]] | None = None
    top_logprobs: list[list[Float32]] | None = None


@dataclass(frozen=True)
class Response:
    """A system's answer; `tokens` counts its tokens, `seconds` is its share of its batch.

    `is_cut`: the limit of the length has ended it. The last four are a student's: see
    `common.student.certainty`, and the share of the sampled responses that are the same, None if
    there are none.
    """

    text: str
    tokens: int
    seconds: float
    error: str | None = None
    is_cut: bool = False
    mean_logprob: float | None = None
    least_logprob: float | None = None
    margin: float | None = None
    agreement: float | None = None


def make_schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a row type's fields; every column may be null."""
    kinds = get_type_hints(row_type, include_extras=True)
    return pa.schema({name: _find_arrow_type(kind) for name, kind in kinds.items()})


def _find_arrow_type(kind: Any) -> pa.DataType:
    if get_origin(kind) is Annotated:
        return get_args(kind)[1]
    inner = [argument for argument in get_args(kind) if argument is not NoneType]
    if get_origin(kind) is list:
        return pa.list_(_find_arrow_type(inner[0]))
    if inner:  # optional
        return _find_arrow_type(inner[0])
    return {str: pa.string(), int: pa.int64(), float: pa.float64()}[kind]


EXAMPLE_SCHEMA = make_schema(Example)
LABEL_SCHEMA = make_schema(LabelRow)
PREDICTION_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "text": pa.string(),
        "references": pa.list_(pa.string()),
        "prediction": pa.string(),
        "edits": pa.list_(
            pa.struct({"start": pa.int64(), "end": pa.int64(), "tokens": pa.list_(pa.string())})
        ),
        "error": pa.string(),
        "tokens": pa.int64(),
        "seconds": pa.float64(),
        "mean_logprob": pa.float32(),
        "least_logprob": pa.float32(),
        "margin": pa.float32(),
        "agreement": pa.float32(),
    }
)
"""`edits`: tokens `start` to `end` of the text became `tokens`, see `common.metrics.edits`; null
unless the task has a metric of edits. The columns from `tokens` on are the `Response`'s. The task's
group columns follow."""


def hash_text(text: str) -> str:
    """The id of an example: the first half of the SHA-256 of its text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def hash_content(content: Any) -> str:
    """The first half of the SHA-256 of a value as JSON."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def make_label_table(rows: list[LabelRow]) -> pa.Table:
    """A table of `LABEL_SCHEMA`."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema=LABEL_SCHEMA)


def get_rows(table: pa.Table) -> list[dict[str, Any]]:
    """A table's rows as dictionaries."""
    return list(table.to_pylist())
