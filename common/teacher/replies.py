"""The teacher's raw replies, and how to read them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.teacher.api_errors import (
    NO_ERROR,
    WRONG_SHAPE,
    ApiError,
    find_error,
    make_storable,
    read_error,
)
from common.teacher.statuses import match_rule, name_error
from common.teacher.usage import COUNTED_ELSEWHERE, Usage, read_usage


@dataclass(frozen=True)
class Reply:
    """A raw reply.

    `http_status` is 0 if there was no response; then `body` is "timeout: …", "connection: …" or
    "lost: …". `most_prompt_tokens` is an upper bound, for replies without usage. `max_tokens`
    is the limit of the response's length, 0 if unknown. `cost_usd` is the cost that a gateway's
    header tells, None without one; `service_tier` is what was asked for, such as `batch`.
    `example_id` is the example's, empty in journals of earlier versions.
    """

    key: str
    http_status: int
    body: str
    attempts: int
    seconds: float
    most_prompt_tokens: int = 0
    max_tokens: int = 0
    cost_usd: float | None = None
    service_tier: str = ""
    example_id: str = ""


@dataclass(frozen=True)
class Logprobs:
    """The log-probabilities of a response's tokens and of their likeliest alternatives."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_tokens: list[list[str]]
    top_logprobs: list[list[float]]


@dataclass(frozen=True)
class Answer:
    """The content of a reply.

    Attributes:
        text: the response, without its reasoning.
        error: the error type, if the response is unusable.
        message: the error for people.
        reasoning: what a reasoning teacher wrote before its response.
        usage: None if the reply does not tell, and may be paid for.
        status: the HTTP status, or the one of the error in a response of status 200.
        api_error: the error in the body.
    """

    text: str
    error: str | None
    message: str | None
    finish_reason: str | None = None
    reasoning: str | None = None
    usage: Usage | None = None
    logprobs: Logprobs | None = None
    status: int = 200
    api_error: ApiError = NO_ERROR

    @property
    def is_final(self) -> bool:
        """Whether the model has answered, if only with an unusable response."""
        return self.status == 200 and self.error != "bad_response"


_FINISHED = ("", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed")
"""The finish reasons of whole responses, as is null."""
_FINISH_ERRORS = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "refusal": "refusal",
    "error": "bad_response",
    "abort": "bad_response",
    "network_error": "bad_response",
}
"""Error types of finish reasons; of all others: `unfinished`."""
FINAL_ERRORS = frozenset({*_FINISH_ERRORS.values(), "unfinished"} - {"bad_response"})
"""The errors of answers: to ask again would be paid for again."""
_RAISE = "raise DISTILL_TEACHER__MAX_TOKENS"
_TAGS = r"(?:think|thinking|thought|reasoning)"
_THOUGHT = re.compile(
    rf"(.*)(?:</{_TAGS}>|\[/THINK\]|<\|channel\|>final<\|message\|>)", re.DOTALL | re.IGNORECASE
)
_OPENING = re.compile(
    rf"\s*(?:<{_TAGS}>|\[THINK\]|<\|channel\|>analysis<\|message\|>)", re.IGNORECASE
)


def read_answer(reply: Reply) -> Answer:
    """The content of a reply; never raises: an unusable reply gets an error type."""
    if reply.http_status != 200:
        kind = name_error(reply.http_status, reply.body)
        return _make_failure(kind, read_error(reply.body), Usage(), reply.http_status)
    try:
        content = json.loads(reply.body.removeprefix("\ufeff"))
        usage = read_usage(content) if isinstance(content, dict) else None
        if (error := find_error(content)) is not None:
            status = error.status or (429 if "rate_limit" in error.codes else 500)
            kind = match_rule(status, error).error
            return _make_failure(kind, error, usage or Usage(), status)
        if not content["choices"]:
            message = f"no choices in {reply.body[:200]!r}"
            return Answer("", "bad_response", message, usage=usage or Usage())
        return _read_choice(content["choices"][0], usage)
    except WRONG_SHAPE as wrong:
        if reply.body.lstrip().startswith("<"):  # the page of a login or a proxy
            return _make_failure("bad_response", read_error(reply.body), Usage(), 200)
        message = f"{type(wrong).__name__}: {wrong} in {reply.body[:200]!r}"
        return Answer("", "bad_response", message)


def _make_failure(kind: str, error: ApiError, usage: Usage, status: int) -> Answer:
    return Answer("", kind, error.message, usage=usage, status=status, api_error=error)


def _read_choice(choice: Any, usage: Usage | None) -> Answer:
    """Raises one of WRONG_SHAPE if the choice has an unexpected shape."""
    message = choice.get("message") or choice
    content = message["content"] if "content" in message else message["text"]
    reason = choice.get("finish_reason")
    if not isinstance(content, str | list | None) or not isinstance(reason, str | None):
        raise TypeError("content or finish_reason is of an unexpected type")
    text, thoughts = _split_parts(content)
    text, thought, is_cut = _split_thought(text)
    for name in ("reasoning_content", "reasoning"):
        found = message.get(name)
        thoughts += [found] if isinstance(found, str) and found not in thoughts else []
    reasoning = "\n".join(part for part in (*thoughts, thought) if part.strip())
    parts = content if isinstance(content, list) else []
    refusals = [part.get("refusal") for part in parts if isinstance(part, dict)]
    refusal = message.get("refusal") or next(filter(None, refusals), None)
    error = explanation = None
    if (reason or "").lower() not in _FINISHED:
        error = _FINISH_ERRORS.get((reason or "").lower(), "unfinished")
        explanation = f"finish_reason {reason!r}"
    if error == "length":
        is_thinking = is_cut or not text.strip()
        explanation = f"cut off{' inside its reasoning' if is_thinking else ''}; {_RAISE}"
    if isinstance(refusal, str) and refusal and not text.strip():
        error, explanation = "refusal", make_storable(refusal)[:500]
    return Answer(
        make_storable(text),
        error,
        explanation,
        None if reason is None else make_storable(reason),
        make_storable(reasoning) or None,
        usage,
        _read_logprobs(choice.get("logprobs")),
    )


def _split_parts(content: str | list[Any] | None) -> tuple[str, list[str]]:
    """The text of a message's content, and its thinking parts."""
    if not isinstance(content, list):
        return content or "", []
    texts, thoughts = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type", "text") in ("text", "output_text"):
            if not isinstance(part["text"], str | None):
                raise TypeError("a part's text is not a string")
            texts.append(part["text"] or "")
        elif inner := part.get("thinking") or part.get("reasoning") or part.get("text"):
            thoughts.append(_split_parts(inner)[0])
    return "".join(texts), thoughts


def _split_thought(text: str) -> tuple[str, str, bool]:
    """The text after its last closing <think> tag, what stood before, and whether it is open.

    A chat template may have written the opening tag.
    """
    if "<" not in text and "[" not in text:
        return text, "", False
    if found := _THOUGHT.match(text):
        return text[found.end() :].lstrip(), _OPENING.sub("", found[1], count=1).strip(), False
    if found := _OPENING.match(text):
        return "", text[found.end() :].strip(), True
    return text, "", False


def split_reply(reply: Reply, keys: Sequence[str]) -> list[Reply]:
    """A reply per choice, with the keys in order; the first has the usage of all.

    A reply without several choices belongs to the first key, or to all if it is an error.
    """
    if len(keys) == 1:
        return [replace(reply, key=keys[0])]
    try:
        content = json.loads(reply.body.removeprefix("\ufeff"))
        bodies = [content | {"choices": [choice]} for choice in content["choices"][: len(keys)]]
    except WRONG_SHAPE:
        bodies = []
    if not bodies or find_error(content) is not None:
        return [replace(reply, key=key) for key in keys]
    if len(bodies) == 1:
        return [replace(reply, key=keys[0])]
    for body in bodies[1:] if read_usage(content) else []:
        body["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, COUNTED_ELSEWHERE: True}
    texts = [json.dumps(body, ensure_ascii=False) for body in bodies]
    costs = [reply.cost_usd, *[None if reply.cost_usd is None else 0.0] * (len(texts) - 1)]
    parts = zip(keys, texts, costs, strict=False)
    return [replace(reply, key=key, body=text, cost_usd=cost) for key, text, cost in parts]


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
