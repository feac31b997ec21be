"""What the server's answer to a call means for its row and for the job.

One table says it: the first rule that fits a status and what the body says counts. A new provider's
habit is one line there.
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
"""What reading JSON of an unforeseen shape raises."""
PASSING_ERRORS = ("timeout", "connection", "server_error", "rate_limit", "bad_response")
"""The error types of rows that another run may get an answer for."""
UNFINISHED = ("length", "content_filter")
"""The finish reasons of responses that are not labels; also their error types."""


class Action(Enum):
    """What follows from an answer.

    ANSWER: it is one. RETRY: the call is sent again, with full jitter, at most
    `teacher.max_attempts` times; then the row fails. THROTTLE: everyone waits as long as
    `Retry-After` says, and no attempt is used up. FAIL: this row fails. STOP_…: the job stops, for
    no call can succeed before the user has corrected the key (or paid), the model or the URL.
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
        statuses: HTTP statuses; 0 stands for no response at all.
        action: what follows.
        error: the type of error of a row that ends with it.
        said: what the error's code, type or message must match; empty: anything.
        body: what must stand anywhere in the body.
    """

    statuses: Container[int]
    action: Action
    error: str = ""
    said: str = ""
    body: str = ""

    def fits(self, status: int, body: str, said: str) -> bool:
        """Whether it is about such an answer."""
        return (
            status in self.statuses
            and (not self.said or re.search(self.said, said, re.IGNORECASE) is not None)
            and (not self.body or re.search(self.body, body) is not None)
        )


_NO_CREDIT = r"\A(insufficient_quota|billing_hard_limit_reached) "
_UNKNOWN_MODEL = (
    r"\Amodel_not_found |model\b.*(not found|not exist|unknown)|(unknown|invalid|not a valid) model"
)
_ROW = range(400, 500)

_RULES = (
    Rule({200}, Action.ANSWER),
    Rule({0}, Action.RETRY),  # the body says which: "timeout: …", "connection: …", "lost: …"
    Rule({401, 402, 403}, Action.STOP_KEY, "refused"),
    Rule({429}, Action.STOP_KEY, "refused", said=_NO_CREDIT),
    Rule({429}, Action.THROTTLE, "rate_limit"),
    Rule({408, 409, 425}, Action.RETRY, "server_error"),
    Rule({400}, Action.STOP_MODEL, "refused", said=_UNKNOWN_MODEL),
    Rule({404}, Action.STOP_MODEL, "refused", said="model"),
    Rule({405}, Action.FAIL, "bad_request", said="model"),
    Rule({501}, Action.RETRY, "server_error", said="model"),
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


def judge(status: int, body: str) -> Rule:
    """The rule that counts for an answer."""
    said = ""
    if status >= 400:
        said = f"{read_provider_code(body) or ''} {read_provider_message(body)}"
    return next(rule for rule in _RULES if rule.fits(status, body, said))


def stop_if_told(
    action: Action, settings: TeacherSettings, request: str, status: int, body: str
) -> None:
    """Raises the error that stops the job, if an answer to a request says that it must stop."""
    if action not in (Action.STOP_URL, *_ADVICE):
        return
    message = read_provider_message(body)
    if action is Action.STOP_URL:
        raise InputError(
            f"DISTILL_TEACHER__BASE_URL={settings.base_url!r}: what answers there does not speak "
            f"the OpenAI API ({request}: {status} {message}); such a URL mostly ends in /v1"
        )
    raise TeacherRefusedError(
        f"the teacher at {settings.base_url} (model {settings.model!r}) refuses: {status} "
        f"{message}; {_ADVICE[action]}"
    )


def name_error(status: int, body: str) -> str:
    """The type of error of a row whose last answer this is."""
    return judge(status, body).error or body.split(":")[0]


def read_provider_message(body: str) -> str:
    """The message in an API's error body, or the body's beginning."""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        message = error["message"] if isinstance(error, dict) else error
        return make_storable(str(message)[:500])
    except WRONG_SHAPE:
        return " ".join(body.split())[:200]


def read_provider_code(body: str) -> str | None:
    """The code in an API's error body, such as insufficient_quota; None where there is none."""
    try:
        error: Any = json.loads(body)["error"]
        code = error.get("code") or error.get("type")
        return None if code is None else str(code)
    except WRONG_SHAPE:
        return None


def make_storable(text: str) -> str:
    """The text without halves of characters (a cut emoji's surrogate), which no file can hold."""
    return text.encode("utf-8", "replace").decode()
