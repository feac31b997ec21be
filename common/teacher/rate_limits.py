"""Reads the rate limits in the teacher's response headers."""

import email.utils
import math
import re
import time
from collections.abc import Iterable

from common.quota.protocol import Headers

_RATE_LIMIT_FIELDS = {
    f"x-ratelimit-{what}-{kind}".encode(): f"{kind}_{what}{unit}"
    for kind in ("requests", "tokens")
    for what, unit in (("limit", ""), ("remaining", ""), ("reset", "_seconds"))
}
_DURATION_PART = re.compile(r"([\d.]+)(ms|s|m|h|d)")
_DURATION = re.compile(r"((\d+(\.\d*)?|\.\d+)(ms|s|m|h|d))+")


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers | None:
    """The `x-ratelimit-*` headers of OpenAI's API; None if there are none."""
    headers = None
    for name, value in raw:
        field = _RATE_LIMIT_FIELDS.get(name.lower())
        if field:
            headers = headers or Headers()
            setattr(headers, field, parse_seconds(value.decode("ascii", "replace")))
    return headers


def parse_seconds(value: str | None) -> float | None:
    """The seconds of a number or of a duration such as 6m0s, 1.5s or 20ms; None for others."""
    if value is None:
        return None
    try:
        number = float(value)
        return number if math.isfinite(number) and number >= 0 else None
    except ValueError:
        pass
    if not _DURATION.fullmatch(value):
        return None
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    return sum(float(n) * units[unit] for n, unit in _DURATION_PART.findall(value))


def parse_retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header, a number or an HTTP date; None for others."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
