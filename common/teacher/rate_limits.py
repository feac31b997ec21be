"""Reads the rate limits in the teacher's response headers.

Providers write a time as a duration (6m0s, 20ms), as a number of seconds, as a number of
milliseconds without saying so, or as the moment when it ends.
"""

import email.utils
import math
import re
import time
from collections.abc import Iterable
from datetime import datetime

from common.quota.protocol import Headers

_RATE_LIMIT_FIELDS = {
    f"x-ratelimit-{what}-{kind}".encode(): f"{kind}_{what}{unit}"
    for kind in ("requests", "tokens")
    for what, unit in (("limit", ""), ("remaining", ""), ("reset", "_seconds"))
}
_FIRST_MOMENT, _FIRST_MILLISECONDS = 1e9, 1e12
"""From these numbers on it is a moment, in seconds since 1970 or in milliseconds."""
_LONGEST_MINUTE, _LONGEST_DAY = 60.0, 86_400.0 * 1.5
"""A longer reset is ignored: as a bare number, which may be milliseconds; in any form."""
_DURATION_PART = re.compile(r"([\d.]+)(ms|s|m|h|d)")
_DURATION = re.compile(r"((\d+(\.\d*)?|\.\d+)(ms|s|m|h|d))+")


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers | None:
    """The `x-ratelimit-*` headers of OpenAI's API; None if there are none."""
    headers = None
    for name, value in raw:
        field = _RATE_LIMIT_FIELDS.get(name.lower())
        if field:
            headers = headers or Headers()
            text = value.decode("ascii", "replace")
            parse = parse_reset if field.endswith("_seconds") else parse_seconds
            setattr(headers, field, parse(text))
    return headers


def parse_reset(value: str) -> float | None:
    """The seconds until a limit is reset, from a duration or a moment; None if it is doubtful."""
    number = parse_seconds(value)
    is_bare = re.fullmatch(r"[\d.]+", value.strip()) is not None
    if is_bare and number is not None and number < _FIRST_MOMENT:
        return number if number <= _LONGEST_MINUTE else None
    seconds = number if number is not None and not is_bare else _parse_moment(value)
    return seconds if seconds is not None and seconds <= _LONGEST_DAY else None


def _parse_moment(value: str) -> float | None:
    """The seconds until a moment, at least 0: of Unix time, ISO 8601 or an HTTP date."""
    try:
        moment = float(value)
        moment /= 1000 if moment >= _FIRST_MILLISECONDS else 1
    except ValueError:
        try:
            moment = datetime.fromisoformat(value).timestamp()
        except ValueError:
            try:
                moment = email.utils.parsedate_to_datetime(value).timestamp()
            except (ValueError, OverflowError):
                return None
    return max(0.0, moment - time.time()) if math.isfinite(moment) else None


def parse_number(value: str | None) -> float | None:
    """A number of at least 0; None for others."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def parse_seconds(value: str | None) -> float | None:
    """The seconds of a number or of a duration such as 6m0s, 1.5s or 20ms; None for others."""
    if value is None:
        return None
    if (number := parse_number(value)) is not None:
        return number
    if not _DURATION.fullmatch(value):
        return None
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    seconds = sum(float(n) * units[unit] for n, unit in _DURATION_PART.findall(value))
    return seconds if math.isfinite(seconds) else None


def parse_retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header, a duration or a moment; None for others."""
    if value is None:
        return None
    seconds = parse_seconds(value)
    if seconds is None or seconds >= _FIRST_MOMENT:
        return _parse_moment(value)
    return seconds
