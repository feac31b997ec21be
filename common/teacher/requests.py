"""The request for one text, its size and its key."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import SettingsError
from common.sections import TeacherSettings
from common.settings import Settings
from common.tasks.task import Task

_MESSAGE_TOKENS = 16
"""An upper bound of what a chat template adds to a message: role, markers (ChatML, Llama-3: 5)."""
_REQUEST_TOKENS = 512
"""An upper bound of what a template adds to a request: start markers, its own system message.

The longest known are about 100 tokens (gpt-oss) and about 300 (Command R7B).
"""


def make_request(settings: TeacherSettings, task: Task, text: str) -> dict[str, Any]:
    """The body of the request for one text, for either endpoint, before `dialect.adapt`."""
    body: dict[str, Any] = {
        "model": settings.model,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
    }
    if settings.logprobs and settings.endpoint == "chat":
        body |= {"logprobs": True, "top_logprobs": settings.logprobs}
    elif settings.logprobs:
        body["logprobs"] = settings.logprobs
    body |= settings.extra_body
    if settings.endpoint == "chat":
        if task.teacher.response_format:
            body["response_format"] = task.teacher.response_format
        return body | {"messages": task.make_messages(text)}
    return body | {
        "prompt": task.make_completion_prompt(text),
        "stop": task.teacher.completion.stop,
    }


def require_model(settings: TeacherSettings) -> None:
    """Raises a SettingsError if no model is named."""
    if not settings.model:
        raise SettingsError(
            "DISTILL_TEACHER__MODEL is not set: name the model as the API at "
            f"{settings.base_url} knows it"
        )


def make_key(settings: TeacherSettings, body: dict[str, Any], sample: int = 0) -> str:
    """A reply's key in the journal: a hash of endpoint, request and sample index."""
    identity = [settings.base_url, settings.endpoint, body, sample]
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def count_characters(body: dict[str, Any]) -> int:
    """The characters of a request's prompt."""
    return sum(map(len, get_contents(body)))


def bound_prompt_tokens(body: dict[str, Any]) -> int:
    """An upper bound of the tokens of a request's prompt.

    A token covers at least one byte of UTF-8, or belongs to the chat template, which has an
    allowance. This holds for byte-level BPE and for SentencePiece with byte fallback, but not for a
    normalisation that lengthens the text (NFKC).
    """
    sizes = [len(c.encode("utf-8", "surrogatepass")) for c in get_contents(body)]
    return sum(sizes) + _MESSAGE_TOKENS * len(sizes) + _REQUEST_TOKENS


def bound_prompts(settings: TeacherSettings, task: Task, sizes: NDArray[Any]) -> NDArray[np.int64]:
    """`bound_prompt_tokens` of the requests for texts of these bytes: it is linear in them."""
    empty, one = (bound_prompt_tokens(make_request(settings, task, text)) for text in ("", "x"))
    return empty + (one - empty) * np.asarray(sizes, np.int64)


def get_contents(body: dict[str, Any]) -> list[str]:
    """The texts of a request: its messages' contents, or its prompt."""
    if "prompt" in body:
        return [body["prompt"]]
    return [message["content"] for message in body["messages"]]


def fingerprint_teacher(settings: Settings, task: Task) -> dict[str, Any]:
    """What a label depends on, besides its text."""
    names = ("base_url", "model", "endpoint", "max_tokens", "temperature", "logprobs", "extra_body")
    headers = sorted(settings.teacher.extra_headers)  # their values may be secrets
    return {
        "task": f"{task.name} {task.label_fingerprint}",
        **settings.fingerprint("teacher", names),
        **({"teacher.extra_headers": headers} if headers else {}),
        **settings.fingerprint("label", ["samples"]),
    }
