"""Replies of the teacher, as they came, and what can be read in them."""

import json
from dataclasses import dataclass
from typing import Any

_ROW_REFUSALS = {
    "context_length": "context_length",
    "content_filter": "content_policy",
    "content_policy": "content_policy",
    "safety": "content_policy",
}
"""What stands in the body of a 4xx about one row, and the row's error type."""
TRANSIENT_ERRORS = ("timeout", "connection", "server_error", "rate_limit", "bad_response")
"""The error types of rows that another run may get an answer for."""
_UNFINISHED = ("length", "content_filter")
"""The finish reasons of responses that are no labels; also their error types."""
_WRONG_SHAPE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading JSON of an unforeseen shape raises."""


@dataclass(frozen=True)
class Reply:
    """What came back for one request, as it came.

    `http_status` is 0 where there was no response at all; then `body` is "timeout: …",
    "connection: …" or "lost: …". `most_prompt_tokens` is for those that do not tell their usage.
    """

    key: str
    http_status: int
    body: str
    attempts: int
    seconds: float
    most_prompt_tokens: int = 0

    @property
    def is_final(self) -> bool:
        """Whether asking again would bring nothing new: it was answered, or refused for good."""
        return self.http_status == 200 or _is_row_refusal(self.http_status)


@dataclass(frozen=True)
class Logprobs:
    """The log-probabilities of a response's tokens, and of the likeliest ones in their places."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_tokens: list[list[str]]
    top_logprobs: list[list[float]]


@dataclass(frozen=True)
class Answer:
    """The content of a reply. `error` is None, or the type of what is wrong with it."""

    text: str
    error: str | None
    message: str | None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    logprobs: Logprobs | None = None


def read_answer(reply: Reply) -> Answer:
    """The content of a reply; never raises: a reply without content gets an error type."""
    if reply.http_status != 200:
        return Answer("", _error_type(reply), read_provider_message(reply.body))
    try:
        content = json.loads(reply.body)
        choice = content["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        reason = choice.get("finish_reason")
        if not isinstance(text, str | None) or not isinstance(reason, str | None):
            raise TypeError("content or finish_reason is no string")
    except _WRONG_SHAPE as error:
        message = f"{type(error).__name__}: {error} in {reply.body[:200]!r}"
        return Answer("", "bad_response", message)
    usage = content.get("usage")
    return Answer(
        text=_storable(text or ""),
        error=reason if reason in _UNFINISHED else None,
        message=None,
        finish_reason=reason,
        prompt_tokens=_read_count(usage, "prompt_tokens"),
        cached_tokens=_read_count(usage, "prompt_tokens_details", "cached_tokens"),
        completion_tokens=_read_count(usage, "completion_tokens"),
        logprobs=_read_logprobs(choice.get("logprobs")),
    )


def _read_count(usage: Any, *path: str) -> int:
    """A number of tokens in a response's usage; 0 where there is none."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return int(usage) if isinstance(usage, int | float) and 0 <= usage < 2**63 else 0


def _read_logprobs(found: Any) -> Logprobs | None:
    """A choice's log-probabilities, in the form of either endpoint; None where there are none."""
    if not found:
        return None
    try:
        if "content" in found:
            places = found["content"]
            tokens = [place["token"] for place in places]
            values = [place["logprob"] for place in places]
            tops = [
                [(top["token"], top["logprob"]) for top in place.get("top_logprobs") or []]
                for place in places
            ]
        else:
            tokens, values = found["tokens"], found["token_logprobs"]
            tops = [[*(t or {}).items()] for t in found.get("top_logprobs") or [{}] * len(tokens)]
        if not len(tokens) == len(values) == len(tops):
            return None
        return Logprobs(
            tokens=[_storable(token) for token in tokens],
            token_logprobs=[None if value is None else float(value) for value in values],
            top_tokens=[[_storable(token) for token, _ in top] for top in tops],
            top_logprobs=[[float(value) for _, value in top] for top in tops],
        )
    except _WRONG_SHAPE:
        return None


def _storable(text: str) -> str:
    """The text without halves of characters (a cut emoji's surrogate), which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _is_row_refusal(status: int) -> bool:
    return 400 <= status < 500 and status not in (408, 409, 425, 429)


def _error_type(reply: Reply) -> str:
    if reply.http_status == 0:
        return reply.body.split(":")[0]
    if reply.http_status == 429:
        return "rate_limit"
    if not _is_row_refusal(reply.http_status):
        return "server_error"
    return next((name for sign, name in _ROW_REFUSALS.items() if sign in reply.body), "bad_request")


def read_provider_message(body: str) -> str:
    """The message in an API's error body, or the body's beginning."""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        message = error["message"] if isinstance(error, dict) else error
        return _storable(str(message)[:500])
    except _WRONG_SHAPE:
        return " ".join(body.split())[:200]


def read_provider_code(body: str) -> str | None:
    """The code in an API's error body, such as insufficient_quota; None where there is none."""
    try:
        error = json.loads(body)["error"]
        code = error.get("code") or error.get("type")
        return None if code is None else str(code)
    except _WRONG_SHAPE:
        return None
