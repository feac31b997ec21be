"""What a job has learned about the requests that its teacher takes, from refused parameters."""

import re
from collections.abc import Iterable
from typing import Any

from common.errors import SettingsError
from common.sections import TeacherSettings
from common.teacher.api_errors import ApiError

Adaptations = frozenset[str]
"""Each is `old>new`, for a parameter of another name, or a parameter's name, for one left out."""

_RENAMED = {"max_tokens": "max_completion_tokens"}
REFUSED_PARAMETER = (400, 404, 422)
"""The statuses of a refused parameter."""
_UNSUPPORTED = re.compile(
    r"unsupported|(not|n't).{0,12}support|(un|not )recogni[sz]ed|unknown|unexpected|not (permitted|"
    r"allowed|available)|only (the default|one)|extra.?(inputs|forbidden)|deprecated|must be 1\b|"
    r"instead",
    re.IGNORECASE,
)
_REQUIRED = ("model", "messages", "prompt")
"""What no request goes without."""
_N = r"['\"`]n['\"`]|\bn (must|should|>|=)|[Oo]nly one (completion|choice)"
"""A letter alone names no parameter."""
_MOST_REFUSALS = 3
"""The last of these leaves out all that can be, so that a job pays for no more."""


def is_explicit(error: ApiError) -> bool:
    """Whether an error names a parameter outside its message, which may quote a text."""
    return bool(error.parameter) or "unsupported" in error.codes.lower()


def adapt(body: dict[str, Any], adaptations: Adaptations) -> dict[str, Any]:
    """The request as the teacher takes it."""
    if not adaptations:
        return body
    names = dict(a.split(">") for a in adaptations if ">" in a)
    return {names.get(key, key): value for key, value in body.items() if key not in adaptations}


def learn(
    body: dict[str, Any],
    status: int,
    error: ApiError,
    settings: TeacherSettings,
    sent_with: Adaptations,
) -> Adaptations:
    """The adaptations that a refusal of a request suggests; none if it has another reason.

    Raises:
        SettingsError: the refused parameter has a value of the user's own.
    """
    sent = adapt(body, sent_with)
    refused = _find_refused(sent, error) if status in REFUSED_PARAMETER else None
    if refused is None:
        return frozenset()
    if refused in _RENAMED:
        return frozenset({f"{refused}>{_RENAMED[refused]}"})
    originals = {new: old for old, new in _RENAMED.items()}
    if refused in originals:
        return frozenset()
    if setting := _find_setting(refused, settings):
        raise SettingsError(
            f"{setting}: the teacher at {settings.base_url} (model {settings.model!r}) refuses "
            f"{refused}={body[refused]!r}: {error.message}; remove or change the setting"
        )
    if len(sent_with) + 1 >= _MOST_REFUSALS:
        optional = [key for key in ("n", "stop", "temperature", "response_format") if key in sent]
        return frozenset(key for key in optional if not _find_setting(key, settings))
    return frozenset({refused})


def _find_refused(sent: dict[str, Any], error: ApiError) -> str | None:
    """The parameter of a request that an error is about."""
    parameter = re.split(r"[.\[]", error.parameter.removeprefix("body."))[0]
    if not _UNSUPPORTED.search(error.text):
        return None
    if parameter in sent and parameter not in _REQUIRED:
        return parameter
    names = [key for key in sent if key not in _REQUIRED]
    if parameter in _REQUIRED:
        return None
    places = {key: _find_name(key, error.message) for key in names}
    found = [key for key, place in places.items() if place >= 0]
    return min(found, key=lambda key: (places[key], -len(key)), default=None)


def _find_name(parameter: str, message: str) -> int:
    """Where a message names a parameter; -1 if it does not."""
    pattern = _N if parameter == "n" else rf"\b{re.escape(parameter)}\b"
    found = re.search(pattern, message)
    return found.start() if found else -1


def _find_setting(parameter: str, settings: TeacherSettings) -> str:
    """The setting that gives a parameter a value of the user's own; empty if none does."""
    if parameter in settings.extra_body:
        return "DISTILL_TEACHER__EXTRA_BODY"
    if parameter in ("logprobs", "top_logprobs"):
        return "DISTILL_TEACHER__LOGPROBS"
    default = type(settings).model_fields["temperature"].default
    if parameter == "temperature" and settings.temperature != default:
        return "DISTILL_TEACHER__TEMPERATURE"
    return ""


def describe(adaptations: Iterable[str]) -> list[str]:
    """The adaptations for people, such as `max_completion_tokens for max_tokens`."""
    pairs = [a.partition(">") for a in sorted(adaptations)]
    return [f"{new} for {old}" if new else f"no {old}" for old, _, new in pairs]
