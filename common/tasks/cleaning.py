"""Cleans a system's response: what is meant is the same, whatever it is written in.

One function for teacher and students alike, so that neither is right by its form alone.
"""

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any

from common.tasks.patterns import check_pattern, search

if TYPE_CHECKING:
    from common.tasks.rules import LabelRules

_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "„": "“", "`": "`"}
_FENCE = re.compile(r"```[\w-]*\n(.*?)\n?```", re.DOTALL)
_PREFIX = re.compile(
    r"^[\s*_]*(?:(?:the|my|final|correct|predicted|best|answer|label|class|category|sentiment|result"
    r"|output|response|classification|topic|type|mood|intent|verdict|is)[\s*_]*)+[:=][\s*_]*",
    re.IGNORECASE,
)
"""A name before the label, such as `Label:` or `**The answer is**:`."""
_ITEM = re.compile(r"^(?:[#>*-]+|\d+[.)])\s+")
"""Markdown before a heading, a quotation or an item."""
_AROUND = " \t\r\n*_~`\"'“”„«»‘’"
"""Markdown and quotes around a label."""
GUARD = "\u2060"
"""Breaks a marker without being seen: Unicode's word joiner."""
_MARKER = re.compile(r"\[/?INST\]|<</?SYS>>|</?s>|<(?:unk|pad|bos|eos|mask)>|<\|[^|\s]{1,40}\|>")
"""Spellings of special tokens, of Llama's and other kinds."""
_PATH = re.compile(r"\$((\.[\w-]+|\[\d+\]|\[(\"[^\"]*\"|'[^']*')\])*)")
_STEP = re.compile(r"\.([\w-]+)|\[(\d+)\]|\[[\"']([^\"']*)[\"']\]")


def guard(text: str) -> str:
    """The text with an invisible character in what a model's server takes for its own markers."""
    return _MARKER.sub(lambda found: found[0][0] + GUARD + found[0][1:], text)


def clean(text: str, response: str, rules: "LabelRules") -> tuple[str, bool]:
    """What a response says, and whether `extract` finds it; a response of its own stays as it is.

    `text` is the example's. Raises a SlowPatternError if `extract` takes too long.
    """
    if GUARD not in text:
        response = response.replace(GUARD, "")
    label, is_found = response.strip(), True
    if rules.extract:
        found = extract(label, rules.extract)
        label, is_found = (label if found is None else found.strip()), found is not None
    if rules.unquote and len(label) > 1 and not text.startswith(label[0]):
        inner, closing = label[1:-1], _QUOTES.get(label[0])
        if closing == label[-1] and not {label[0], closing} & set(inner):
            label = inner.strip()
    if rules.lower_case:
        label = label.lower()
    return (_find_allowed(label, rules.allowed) if rules.allowed else label), is_found


def _find_allowed(label: str, allowed: list[str]) -> str:
    """The allowed label that a response can only mean; else the response.

    Case, Unicode's forms, Markdown, quotes, a name before the label, and punctuation do not count.
    """
    if label in allowed:
        return label
    fence = _FENCE.fullmatch(label)
    bare = fence[1] if fence else label
    for form in (bare, _PREFIX.sub("", bare, count=1)):
        alike = [a for a in allowed if _fold(a) == _fold(form)]
        bare_form = _strip(form)
        alike = alike or [a for a in allowed if bare_form and _strip(a) == bare_form]
        if len(alike) == 1:
            return alike[0]
    return label


def _fold(label: str) -> str:
    return unicodedata.normalize("NFKC", label).casefold().strip()


def _strip(label: str) -> str:
    bare = _ITEM.sub("", _fold(label)).strip(_AROUND).rstrip(".,;!").strip(_AROUND)
    is_wrapped = len(bare) > 2 and bare[0] + bare[-1] in ("()", "[]", "{}")
    return bare[1:-1].strip(_AROUND) if is_wrapped else bare


def check_extract(rule: str) -> str:
    """Raises a ValueError unless a rule is a JSON path or a regular expression with one group."""
    if rule.startswith("$"):
        if not _PATH.fullmatch(rule):
            raise ValueError("is not a JSON path such as $ or $.items[0].name")
    elif rule:
        groups = check_pattern(rule).groups
        if groups != 1:
            raise ValueError(f"has {groups} groups, and needs one, around the label")
    return rule


def extract(response: str, rule: str) -> str | None:
    """What a rule cuts out of a response; None if that is missing.

    A string of JSON is the label itself; another value is written as compact as its meaning allows,
    with sorted keys, so that equal values are equal labels.
    """
    if not rule.startswith("$"):
        found = search(re.compile(rule), response)
        return found[1] if found else None
    try:
        value = _load_json(response)
        for name, index, quoted in _STEP.findall(rule):
            value = value[int(index)] if index else value[name or quoted]
    except (LookupError, ValueError, TypeError, RecursionError):
        return None
    if value is None:
        return None
    return value if isinstance(value, str) else write_json(value)


def write_json(value: Any) -> str:
    """A value as JSON, the same for equal values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _load_json(response: str) -> Any:
    """The JSON of a response: all of it, or in a fence, or from its first bracket on."""
    fence = _FENCE.search(response)
    for text in (response, fence[1] if fence else ""):
        try:
            return json.loads(text)
        except ValueError:
            pass
    start = re.search(r"[{\[]", response)
    if start is None:
        raise ValueError("no JSON")
    return json.JSONDecoder().raw_decode(response, start.start())[0]
