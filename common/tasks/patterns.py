"""The regular expressions of task files: read as `re` reads them, each search limited in time.

Some expressions take exponential time on some texts, and nothing interrupts `re`. So the package
`regex` searches, which has limits.
"""

import re
from collections import Counter
from functools import cache
from typing import Any

from common.errors import InputError

_SECONDS, _SECONDS_PER_CHARACTER = 0.25, 1e-6
"""How long a search may take, of the process's CPU time."""
_PATIENCE = 50
"""At so many texts of a process that take longer, the job ends: it would take hours."""
_OWN_SYNTAX = re.compile(r"(\\N\{[^}]*\}|\\.)|(?<=\[):|\{(?![\d,])", re.DOTALL)
"""What `regex` takes for a POSIX class or for fuzzy matching, and `re` for plain characters."""

_exceeded: Counter[str] = Counter()
"""By pattern: the texts at which it took too long."""


class SlowPatternError(Exception):
    """A pattern takes too long on a text."""


def check_pattern(pattern: Any) -> re.Pattern[str]:
    """The pattern. Raises a ValueError if it is not a regular expression."""
    try:
        compiled = re.compile(pattern)
        _compile(compiled.pattern, compiled.flags)
    except Exception as error:  # the two packages have errors of their own
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return compiled


def search(pattern: re.Pattern[str], text: str) -> Any:
    """The first match, as of `re`, or None.

    Raises:
        SlowPatternError: the search takes too long.
        InputError: so did many before.
    """
    name, limit = pattern.pattern, _SECONDS + _SECONDS_PER_CHARACTER * len(text)
    if _exceeded[name] < _PATIENCE:
        try:
            return _compile(name, pattern.flags).search(text, timeout=limit)
        except TimeoutError:
            _exceeded[name] += 1
    reason = f"the pattern {name!r} takes longer than {limit:.2g} s on a text"
    if _exceeded[name] >= _PATIENCE:
        raise InputError(
            f"label_rules: {reason}, as on {_PATIENCE - 1} before it; mend it in the task file "
            "(nested repeats such as (a+)+ are slow), and run again: what the teacher has answered "
            "is kept, and not paid for again"
        )
    raise SlowPatternError(reason)


@cache
def _compile(pattern: str, flags: int) -> Any:
    import regex

    plain = _OWN_SYNTAX.sub(lambda found: found[1] or f"\\{found[0]}", pattern)
    return regex.compile(plain, flags & ~re.UNICODE | regex.VERSION0)
