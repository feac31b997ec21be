"""What a response's status means for its row and for the job.

The first rule in a table that matches the status and the error's text counts. A new provider's
peculiarity is one line there.
"""

import json
import re
from collections.abc import Container
from dataclasses import dataclass
from enum import Enum
from typing import Any

from common.errors import InputError, TeacherRefusedError
from common.settings import TeacherSettings

WRONG_SHAPE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading JSON of an unexpected shape raises."""
TRANSIENT_ERRORS = ("timeout", "connection", "server_error", "rate_limit", "bad_response")
"""The error types of rows that may succeed in another run."""
UNFINISHED = ("length", "content_filter")
"""The finish reasons of unusable responses; also their error types."""


class Action(Enum):
    """What follows from a response.

    ANSWER: read it. RETRY: retry with backoff, up to `teacher.max_attempts` times; then the row
    fails. THROTTLE: pause all calls for `Retry-After` without using up an attempt. FAIL: the row
    fails. STOP_…: the job stops until the user corrects the key (or pays), the model or the URL.
    """

    ANSWER = "answer"
    RETRY = "retry"
    THROTTLE = "throttle"
    FAIL = "fail"
    STOP_KEY = "key"
    STOP_MODEL = "model"
    STOP_URL = "url"


@dataclass(frozen=True)
class Rule:
    """A line of the table.

    Attributes:
        statuses: HTTP statuses; 0 for no response.
        error: the error type of a row that fails with it.
        message: a pattern for the error's code, type or message.
        body: a pattern for the body.
    """

    statuses: Container[int]
    action: Action
    error: str = ""
    message: str = ""
    body: str = ""

    def matches(self, status: int, body: str, message: str) -> bool:
        """Whether the rule covers a response."""
        return (
            status in self.statuses
            and re.search(self.message, message, re.IGNORECASE) is not None
            and re.search(self.body, body) is not None
        )


_NO_CREDIT = r"\A(insufficient_quota|billing_hard_limit_reached) "
_UNKNOWN_MODEL = (
    r"\Amodel_not_found |model\b.*(not found|not exist|unknown)|(unknown|invalid|not a valid) model"
)
_ROW = range(400, 500)

_RULES = (
    Rule({200}, Action.ANSWER),
    Rule({0}, Action.RETRY),  # the body has the type: "timeout: …", "connection: …", "lost: …"
    Rule({401, 402, 403}, Action.STOP_KEY, "refused"),
    Rule({429}, Action.STOP_KEY, "refused", message=_NO_CREDIT),
    Rule({429}, Action.THROTTLE, "rate_limit"),
    Rule({408, 409, 425}, Action.RETRY, "server_error"),
    Rule({400}, Action.STOP_MODEL, "refused", message=_UNKNOWN_MODEL),
    Rule({404}, Action.STOP_MODEL, "refused", message="model"),
    Rule({405}, Action.FAIL, "bad_request", message="model"),
    Rule({501}, Action.RETRY, "server_error", message="model"),
    Rule({404, 405, 501}, Action.STOP_URL, "refused"),
    Rule(_ROW, Action.FAIL, "context_length", body="context_length"),
    Rule(_ROW, Action.FAIL, "content_policy", body="content_filter|content_policy|safety"),
    Rule(_ROW, Action.FAIL, "bad_request"),
    Rule(range(1, 1000), Action.RETRY, "server_error"),
)

_ADVICE = {
    Action.STOP_KEY: "check DISTILL_TEACHER__API_KEY, the key's permissions and the account's "
    "credit",
    Action.STOP_MODEL: "check DISTILL_TEACHER__MODEL",
}


def find_rule(status: int, body: str) -> Rule:
    """The rule for a response."""
    message = ""
    if status >= 400:
        message = f"{read_provider_code(body) or ''} {read_provider_message(body)}"
    return next(rule for rule in _RULES if rule.matches(status, body, message))


def raise_if_fatal(
    action: Action, settings: TeacherSettings, request: str, status: int, body: str
) -> None:
    """Raises the error that stops the job, if the action is to stop."""
    if action not in (Action.STOP_URL, *_ADVICE):
        return
    message = read_provider_message(body)
    if action is Action.STOP_URL:
        raise InputError(
            f"DISTILL_TEACHER__BASE_URL={settings.base_url!r}: what answers there does not speak "
            f"the OpenAI API ({request}: {status} {message}); the URL usually ends in /v1"
        )
    raise TeacherRefusedError(
        f"the teacher at {settings.base_url} (model {settings.model!r}) refuses: {status} "
        f"{message}; {_ADVICE[action]}"
    )


def name_error(status: int, body: str) -> str:
    """The error type of a row with this last response."""
    return find_rule(status, body).error or body.split(":")[0]


def read_provider_message(body: str) -> str:
    """The message in an API's error body, or the start of the body."""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        message = error["message"] if isinstance(error, dict) else error
        return make_storable(str(message)[:500])
    except WRONG_SHAPE:
        return " ".join(body.split())[:200]


def read_provider_code(body: str) -> str | None:
    """The code in an API's error body, such as insufficient_quota; None if it is missing."""
    try:
        error: Any = json.loads(body)["error"]
        code = error.get("code") or error.get("type")
        return None if code is None else str(code)
    except WRONG_SHAPE:
        return None


def make_storable(text: str) -> str:
    """The text without lone surrogates (half an emoji), which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()
