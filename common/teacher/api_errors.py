"""Reads the error in a response's body, whatever its shape."""

import json
from dataclasses import dataclass
from typing import Any

from common.teacher.rate_limits import parse_seconds

WRONG_SHAPE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading JSON of an unexpected shape raises."""
_LONGEST = 500


@dataclass(frozen=True)
class ApiError:
    """An API's error; a field that the body lacks is empty.

    Attributes:
        codes: its code and its type, such as `unsupported_parameter invalid_request_error`.
        message: one line for people.
        parameter: the request's parameter that it is about.
        status: the HTTP status that it names, for an error in a response of status 200.
        retry_seconds: how long to wait.
    """

    codes: str = ""
    message: str = ""
    parameter: str = ""
    status: int = 0
    retry_seconds: float | None = None

    @property
    def text(self) -> str:
        """Codes and message, for a pattern."""
        return f"{self.codes} {self.message}"


NO_ERROR = ApiError()


def read_error(body: str) -> ApiError:
    """The error in a body: JSON of OpenAI, Google, FastAPI, Ollama and others, or any text."""
    try:
        content = json.loads(body.removeprefix("\ufeff"))
        content = content[0] if isinstance(content, list) else content
        return _read_object(content)
    except WRONG_SHAPE:
        return ApiError(message=_join(body)[: _LONGEST // 2])


def find_error(content: Any) -> ApiError | None:
    """The error in the JSON of a response of status 200; None if it is an answer."""
    if isinstance(content, list) and content:
        content = content[0]
    if not isinstance(content, dict):
        return None
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict) and isinstance(choice.get("error"), dict):
        return _read_object(choice)
    if isinstance(choice, dict) or not content.get("error"):
        return None
    return _read_object(content)


def _read_object(content: Any) -> ApiError:
    error = content.get("error") or content.get("errors") or content
    error = error[0] if isinstance(error, list) else error
    if not isinstance(error, dict):
        kind = str(content.get("type") or "")[:_LONGEST]
        return ApiError(kind, _join(str(error))[:_LONGEST])
    code = error.get("code", content.get("code"))
    names = (code, error.get("type"), error.get("status"), content.get("type"))
    codes = [str(n) for n in dict.fromkeys(names) if n is not None and not isinstance(n, dict)]
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    message = next(
        (error[k] for k in ("message", "detail", "msg", "error", "reason") if error.get(k)), None
    )
    parts = [str(part) for part in (message, raw) if part]
    status = code if isinstance(code, int) else int(code) if str(code).isdigit() else 0
    details = error.get("details")
    return ApiError(
        " ".join([*codes, *_list_quotas(details)])[:_LONGEST],
        _join(": ".join(parts) or json.dumps(content, ensure_ascii=False))[:_LONGEST],
        str(error.get("param") or "")[:_LONGEST],
        status if 400 <= status < 600 else 0,
        _read_retry_info(details),
    )


def _list_quotas(details: Any) -> list[str]:
    """The names of the violated quotas in a Google QuotaFailure."""
    found = [d.get("violations") for d in details or [] if isinstance(d, dict)]
    return [str(v["quotaId"]) for group in found for v in group or [] if "quotaId" in v]


def _read_retry_info(details: Any) -> float | None:
    """The delay in a Google RetryInfo, in seconds."""
    delays = [d["retryDelay"] for d in details or [] if isinstance(d, dict) and "retryDelay" in d]
    return parse_seconds(str(delays[0])) if delays else None


def make_storable(text: str) -> str:
    """The text without lone surrogates (half an emoji), which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


def _join(text: str) -> str:
    """The text as one line."""
    return " ".join(make_storable(text).split())
