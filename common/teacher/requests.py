"""The request for one text, and its identity."""

import hashlib
import json
from typing import Any

from common.errors import SettingsError
from common.settings import Settings, TeacherSettings
from common.tasks.model import Task

_MESSAGE_TOKENS = 16
"""At most what a chat template puts around a message, its role and marks (ChatML, Llama-3: 5)."""
_REQUEST_TOKENS = 512
"""At most what a template puts before all: the marks of a start, and a system message of its own.

The longest known are gpt-oss's (about 100 tokens) and Command R7B's (about 300).
"""


def make_request(settings: TeacherSettings, task: Task, text: str) -> dict[str, Any]:
    """The body of the request for one text, as both kinds of endpoint want it."""
    body: dict[str, Any] = {
        "model": settings.model,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
    }
    if settings.logprobs and settings.endpoint == "chat":
        body |= {"logprobs": True, "top_logprobs": settings.logprobs}
    elif settings.logprobs:
        body["logprobs"] = settings.logprobs
    if settings.endpoint == "chat":
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
    """The identity of a response: endpoint, canonical request (with its model), sample index."""
    identity = [settings.base_url, settings.endpoint, body, sample]
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def count_characters(body: dict[str, Any]) -> int:
    """The characters of a request's prompt."""
    messages = body.get("messages")
    return sum(len(m["content"]) for m in messages) if messages else len(body["prompt"])


def bound_prompt_tokens(body: dict[str, Any]) -> int:
    """What the tokens of a request's prompt cannot exceed.

    A token of the prompt covers at least one byte of its UTF-8 text, or belongs to the chat
    template, for which there is an allowance. That holds for byte-level BPE and for SentencePiece
    with byte fallback, which all models of today have; a normalisation that makes the text longer
    (NFKC) could break it.
    """
    sizes = [len(c.encode("utf-8", "surrogatepass")) for c in get_contents(body)]
    return sum(sizes) + _MESSAGE_TOKENS * len(sizes) + _REQUEST_TOKENS


def get_contents(body: dict[str, Any]) -> list[str]:
    """The texts of a request: its messages' contents, or the one prompt."""
    if "prompt" in body:
        return [body["prompt"]]
    return [message["content"] for message in body["messages"]]


def fingerprint_teacher(settings: Settings, task: Task) -> dict[str, Any]:
    """What a label depends on, beside its text."""
    names = ("base_url", "model", "endpoint", "max_tokens", "temperature", "logprobs")
    return {
        "task": f"{task.name} {task.label_fingerprint}",
        **settings.fingerprint("teacher", names),
        **settings.fingerprint("label", ["samples"]),
    }
