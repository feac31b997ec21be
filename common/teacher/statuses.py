"""What a response's status means for its row and for the job.

The first rule in a table that matches the status and the error's text counts. A new provider's
peculiarity is one line there.
"""

import re
from collections.abc import Container
from dataclasses import dataclass
from enum import Enum

from common.errors import DistillError, InputError, TeacherRefusedError
from common.quota.protocol import Blame, Refusal
from common.sections import TeacherSettings
from common.teacher.api_errors import NO_ERROR, ApiError, read_error

TRANSIENT_ERRORS = ("timeout", "connection", "server_error", "rate_limit", "bad_response")
"""The error types of rows that may succeed in another run."""


ABOUT_TEXT = ("content_policy", "context_length")
"""The error types of rows whose text is refused."""


class Action(Enum):
    """What follows from a response.

    ANSWER: read it. RETRY: retry with backoff, up to `teacher.max_attempts` times; then the row
    fails. THROTTLE: pause all calls for `Retry-After` without using up an attempt. FAIL: the row
    fails, or the job stops: `Rule.blame` says which.
    """

    ANSWER = "answer"
    RETRY = "retry"
    THROTTLE = "throttle"
    FAIL = "fail"


@dataclass(frozen=True)
class Rule:
    """A line of the table.

    Attributes:
        statuses: HTTP statuses; 0 for no response.
        error: the error type of a row that fails with it.
        blame: whether the row or the job is at fault.
        fix: what the user corrects if the job is: a key of `_ADVICE`, or `url`.
        text: a pattern for the error's codes and message.
        is_outage: with RETRY: the teacher is down or starts, rather than fails at this request.
    """

    statuses: Container[int]
    action: Action
    error: str = ""
    blame: Blame = Blame.ROW
    fix: str = "request"
    text: str = ""
    is_outage: bool = False

    def matches(self, status: int, text: str) -> bool:
        """Whether the rule covers a response."""
        return status in self.statuses and re.search(self.text, text, re.IGNORECASE) is not None


_NO_CREDIT = (
    r"insufficient.?(quota|balance|funds?|credits?)\b|exceeded_current_quota|credits? balance is"
    r" too low|billing.?(hard.?limit|not.?active)|\barrear|out of credits|payment required|budget"
    r".?(has.been.)?exceeded"
)
_PER_DAY = r"per.?day|daily|\b[RT]PD\b"
_BAD_KEY = (
    r"key.{0,20}(invalid|not valid|not found|incorrect|expired|missing|revoked)|(invalid|incorrect"
    r"|expired|missing|no|revoked).{0,12}\bkey\b|unauthenticated|unauthori[sz]ed|authentication"
)
_UNKNOWN_MODEL = (
    r"model_not_found|model_not_exist|model\b.{0,80}\b(not found|(not|n't) exist|unknown)|(unknown|"
    r"invalid|not a valid) model|model\b.*(decommissioned|deprecated|retired|no longer|shut ?down)"
)
_TOO_LONG = (
    r"context.?(length|window|size)|(prompt|input|request|text) is too (long|large)|too many"
    r" (input )?tokens|string_above_max_length|tokens.{0,20}must be <|maximum.{0,30}tokens"
)
_POLICY = (
    r"content.?(filter|policy|management)|safety|moderat|flagged|guardrail|blocked|prohibited"
    r"|responsible.?ai|data_?inspection|inappropriate|usage polic|sensitive"
)
_ROW = range(400, 500)
_DOWN = (408, 498, 502, 503, 504, *range(520, 530))
"""498: no capacity (Groq's flex tier); 520 to 529: Cloudflare's, and overload (Anthropic)."""

_RULES = (
    Rule({200}, Action.FAIL, "bad_response", Blame.DOUBT, "url", r"^\s*<"),  # a page, not JSON
    Rule({200}, Action.ANSWER),
    # The body has the type: "timeout: …", "connection: …", "lost: …".
    Rule({0}, Action.RETRY, is_outage=True),
    Rule(range(300, 400), Action.FAIL, "refused", Blame.JOB, "redirect"),
    Rule({401, 402}, Action.FAIL, "refused", Blame.CERTAIN, "key"),
    Rule({429}, Action.FAIL, "refused", Blame.CERTAIN, "key", _NO_CREDIT),
    # The message may quote a text of the row's.
    Rule(range(400, 600), Action.FAIL, "refused", Blame.JOB, "key", _NO_CREDIT),
    Rule({429}, Action.FAIL, "rate_limit", Blame.CERTAIN, "day", _PER_DAY),
    Rule({429}, Action.THROTTLE, "rate_limit"),
    Rule({409, 425}, Action.RETRY, "server_error"),
    Rule(_DOWN, Action.RETRY, "server_error", is_outage=True),
    Rule({400, 403}, Action.FAIL, "refused", Blame.JOB, "key", _BAD_KEY),
    Rule({400, 404, 410}, Action.FAIL, "refused", Blame.JOB, "model", _UNKNOWN_MODEL),
    Rule({413}, Action.FAIL, "context_length"),
    Rule(_ROW, Action.FAIL, "context_length", text=_TOO_LONG),
    Rule(_ROW, Action.FAIL, "content_policy", text=_POLICY),
    Rule({403}, Action.FAIL, "refused", Blame.DOUBT, "key"),
    Rule({404, 410}, Action.FAIL, "refused", Blame.DOUBT, "model", r"\bmodel\b"),
    Rule({405}, Action.FAIL, "bad_request", Blame.DOUBT, text=r"\bmodel\b"),
    Rule({501}, Action.RETRY, "server_error", text=r"\bmodel\b"),
    Rule({404, 405, 501}, Action.FAIL, "refused", Blame.DOUBT, "url"),
    Rule(_ROW, Action.FAIL, "bad_request", Blame.DOUBT),
    Rule(range(1, 1000), Action.RETRY, "server_error"),
)

_ADVICE = {
    "key": "check DISTILL_TEACHER__API_KEY, the key's permissions and the account's credit",
    "model": "check DISTILL_TEACHER__MODEL",
    "day": "run again when the day's quota is back",
    "request": "check the teacher's settings and the task's prompt",
}


def find_rule(status: int, body: str) -> Rule:
    """The rule for a response, or for the error in a body of status 200."""
    return match_rule(status, read_error(body) if status >= 300 else NO_ERROR)


def match_rule(status: int, error: ApiError) -> Rule:
    """The rule for an error of a status; see `find_rule`."""
    return next(rule for rule in _RULES if rule.matches(status, error.text))


def make_refusal(
    rule: Rule, settings: TeacherSettings, path: str, status: int, error: ApiError
) -> Refusal:
    """What a response that fails its row says of the job."""
    # The message does not count: it may have a request's id, or the text.
    alike = f"{status} {rule.error} {error.codes}"
    return Refusal(explain(rule, settings, path, status, error), rule.blame, alike)


def explain(
    rule: Rule, settings: TeacherSettings, path: str, status: int, error: ApiError
) -> DistillError:
    """The error that stops the job, if the row is not at fault."""
    message = f"{status} {error.message}".strip()
    if rule.fix == "redirect":
        return InputError(
            f"DISTILL_TEACHER__BASE_URL={settings.base_url!r} redirects ({message}); set it to "
            "the new address"
        )
    if rule.fix == "url":
        return InputError(
            f"DISTILL_TEACHER__BASE_URL={settings.base_url!r}: what answers there does not speak "
            f"the OpenAI API ({path}: {message}); the URL usually ends in /v1"
        )
    teacher, advice = f"{settings.base_url} (model {settings.model!r})", _ADVICE[rule.fix]
    if rule.fix == "day" and "PerDay" in error.codes:
        advice += " (Google's: at midnight, Pacific time)"
    kind = {"key": TeacherRefusedError, "model": TeacherRefusedError, "day": DistillError}
    return kind.get(rule.fix, InputError)(f"the teacher at {teacher} refuses: {message}; {advice}")


def name_error(status: int, body: str) -> str:
    """The error type of a row with this last response."""
    return find_rule(status, body).error or body.split(":")[0]
