"""Replies of the teacher, as they came, and what can be read in them."""

import json
from dataclasses import dataclass

_ROW_REFUSALS = {
    "context_length": "context_length",
    "content_filter": "content_policy",
    "content_policy": "content_policy",
    "safety": "content_policy",
}
"""What stands in the body of a 4xx about one row, and the row's error type."""
TRANSIENT_ERRORS = ("timeout", "connection", "server_error", "rate_limit", "bad_response")
"""The error types of rows that another run may get an answer for."""


@dataclass(frozen=True)
class Reply:
    """What came back for one request, as it came.

    `http_status` is 0 where there was no response at all; then `body` is "timeout: …" or
    "connection: …".
    """

    key: str
    http_status: int
    body: str
    attempts: int
    seconds: float

    @property
    def is_final(self) -> bool:
        """Whether asking again would bring nothing new: it was answered, or refused for good."""
        return self.http_status == 200 or _is_row_refusal(self.http_status)


@dataclass(frozen=True)
class Answer:
    """The content of a reply. `error` is None, or the type of what is wrong with it."""

    text: str
    error: str | None
    message: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


def read_answer(reply: Reply) -> Answer:
    """The content of a reply; never raises: a reply without content gets an error type."""
    if reply.http_status != 200:
        return Answer("", _error_type(reply), read_provider_message(reply.body), None, 0, 0)
    try:
        content = json.loads(reply.body)
        choice = content["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        usage = content.get("usage") or {}
        reason = choice.get("finish_reason")
        if not isinstance(text, str | None) or not isinstance(reason, str | None):
            raise TypeError("content or finish_reason is no string")
        counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        message = f"{type(error).__name__}: {error} in {reply.body[:200]!r}"
        return Answer("", "bad_response", message, None, 0, 0)
    errors = {"length": "length", "content_filter": "content_filter"}
    return Answer(_storable(text or ""), errors.get(reason or ""), None, reason, *counts)


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
    except (ValueError, KeyError, AttributeError):
        return " ".join(body.split())[:200]
