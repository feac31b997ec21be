"""The task's label rules: what a label is cut out of a response, and which responses are none."""

import re

from common.tasks import LabelRules

_SHORT_TEXT_CHARACTERS = 20
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "„": "“", "`": "`"}


def apply_rules(text: str, response: str, rules: LabelRules) -> tuple[str, str | None]:
    """The label in a response, and the name of the rule that rejects it, or None."""
    label = response.strip()
    if rules.unquote and len(label) > 1 and not text.startswith(label[0]):
        inner, closing = label[1:-1], _QUOTES.get(label[0])
        if closing == label[-1] and not {label[0], closing} & set(inner):
            label = inner.strip()
    if rules.lower_case:
        label = label.lower()
    if rules.allowed and label.rstrip(".!") in rules.allowed:
        label = label.rstrip(".!")
    ratio = len(label) / max(len(text), 1)
    long_text = len(text) >= _SHORT_TEXT_CHARACTERS
    checks = {
        "empty": not label,
        "not_allowed": bool(rules.allowed) and label not in rules.allowed,
        "several_lines": rules.single_line and "\n" in label and "\n" not in text,
        "pattern": any(
            re.search(p, label) and not re.search(p, text) for p in rules.reject_patterns
        ),
        "length_ratio": long_text and not rules.min_length_ratio <= ratio <= rules.max_length_ratio,
    }
    return label, next((name for name, rejected in checks.items() if rejected), None)
