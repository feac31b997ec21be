"""The teacher's raw replies, and how to read them."""

import json
from dataclasses import dataclass
from typing import Any

from common.teacher.statuses import (
    UNFINISHED,
    WRONG_SHAPE,
    make_storable,
    name_error,
    read_provider_message,
)


@dataclass(frozen=True)
class Reply:
    """A raw reply.

    `http_status` is 0 if there was no response; then `body` is "timeout: …", "connection: …" or
    "lost: …". `most_prompt_tokens` is an upper bound, for replies without usage.
    """

    key: str
    http_status: int
    body: str
    attempts: int
    seconds: float
    most_prompt_tokens: int = 0


@dataclass(frozen=True)
class Logprobs:
    """The log-probabilities of a response's tokens and of their likeliest alternatives."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_tokens: list[list[str]]
    top_logprobs: list[list[float]]


@dataclass(frozen=True)
class Answer:
    """The content of a reply; `error` is its error type, if any."""

    text: str
    error: str | None
    message: str | None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    logprobs: Logprobs | None = None


def read_answer(reply: Reply) -> Answer:
    """The content of a reply; never raises: an unusable reply gets an error type."""
    if reply.http_status != 200:
        kind = name_error(reply.http_status, reply.body)
        return Answer("", kind, read_provider_message(reply.body))
    try:
        content = json.loads(reply.body)
        choice = content["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        reason = choice.get("finish_reason")
        if not isinstance(text, str | None) or not isinstance(reason, str | None):
            raise TypeError("content or finish_reason is not a string")
    except WRONG_SHAPE as error:
        message = f"{type(error).__name__}: {error} in {reply.body[:200]!r}"
        return Answer("", "bad_response", message)
    usage = content.get("usage")
    return Answer(
        text=make_storable(text or ""),
        error=reason if reason in UNFINISHED else None,
        message=None,
        finish_reason=reason,
        prompt_tokens=_read_count(usage, "prompt_tokens"),
        cached_tokens=_read_count(usage, "prompt_tokens_details", "cached_tokens"),
        completion_tokens=_read_count(usage, "completion_tokens"),
        logprobs=_read_logprobs(choice.get("logprobs")),
    )


def _read_count(usage: Any, *path: str) -> int:
    """A number of tokens in a response's usage; 0 if it is missing."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return int(usage) if isinstance(usage, int | float) and 0 <= usage < 2**63 else 0


def _read_logprobs(found: Any) -> Logprobs | None:
    """A choice's log-probabilities in the format of either endpoint; None if there are none."""
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
            tokens=[make_storable(token) for token in tokens],
            token_logprobs=[None if value is None else float(value) for value in values],
            top_tokens=[[make_storable(token) for token, _ in top] for top in tops],
            top_logprobs=[[float(value) for _, value in top] for top in tops],
        )
    except WRONG_SHAPE:
        return None
