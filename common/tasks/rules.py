"""Label rules: they extract the label of a response, or filter it."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from common.tasks.cleaning import check_extract, clean
from common.tasks.languages import LANGUAGES, detect_language
from common.tasks.patterns import SlowPatternError, check_pattern, search

SLOW_PATTERN = "slow_pattern"
"""The error of a response on which a regular expression takes too long."""
_SHORT_TEXT_CHARACTERS, _LONG_TEXT_CHARACTERS = 20, 50_000
_PIECE = re.compile(r"\w{1,8}|[^\w\s]")
"""A word, or 8 characters of one: some scripts have no spaces."""
_SAME_LANGUAGE_EDIT_RATIO = 0.3
"""A label with a lower edit ratio is in its text's language."""


class LabelRules(BaseModel):
    """How a response becomes a label, and which responses are filtered instead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    extract: Annotated[str, AfterValidator(check_extract)] = ""
    """What cuts the label out of the response: a regular expression with one group, or a JSON path
    such as $.label. Filter responses without it."""
    unquote: bool = False
    """Remove quotes around the response that the text does not have."""
    single_line: bool = False
    """Filter responses of several lines."""
    lower_case: bool = False
    allowed: list[str] = []
    """The classes, for classification; empty: any label. Responses may differ in case, Markdown,
    quotes, punctuation, and a name before the label."""
    reject_patterns: list[Annotated[re.Pattern[str], BeforeValidator(check_pattern)]] = []
    """Regular expressions for chatter and refusals."""
    min_length_ratio: float = Field(0.0, ge=0)
    """Length of the label by that of the text, in characters; texts under 20 are exempt."""
    max_length_ratio: float = Field(float("inf"), gt=0)
    languages: list[str] = []
    """The texts' languages (ISO 639): filter a label whose language certainly differs from its
    text's. Empty: any language."""
    max_edit_ratio: float = Field(1.0, gt=0, le=1)
    """Levenshtein distance of text and label by the longer one's length, in characters, ignoring
    case; 1: any. Texts under 20 characters are exempt."""

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, languages: list[str]) -> list[str]:
        for language in languages:
            if language not in LANGUAGES:
                raise ValueError(f"{language!r} is not a known language code, such as 'en'")
        if len(set(languages)) == 1:
            raise ValueError("needs at least two languages to distinguish, or none")
        return languages


def apply_rules(text: str, response: str, rules: LabelRules) -> tuple[str, str | None]:
    """The label in a response, and the name of the first rule that it breaks, or None.

    Raises an InputError if a regular expression takes too long on many texts.
    """
    try:
        return _apply_rules(text, response, rules)
    except SlowPatternError:
        return response.strip(), SLOW_PATTERN


def explain_slow_pattern(text: str, response: str, rules: LabelRules) -> str:
    """Which regular expression takes too long on a response, or its text; empty if none does."""
    try:
        _apply_rules(text, response, rules)
    except SlowPatternError as error:
        return str(error)
    return ""


def _apply_rules(text: str, response: str, rules: LabelRules) -> tuple[str, str | None]:
    label, is_found = clean(text, response, rules)
    if not is_found and response.strip():
        return label, "extract"
    return label, next(_find_broken_rules(text, label, rules), None)


def measure_edit_ratio(text: str, label: str) -> float:
    """The Levenshtein distance by the longer one's length, from 0 to 1; ignores case and NFC.

    In characters; of long texts, whose square of characters takes minutes, in pieces of words.
    """
    from rapidfuzz.distance import Levenshtein  # the train job lacks it

    pair = _fold(text), _fold(label)
    if max(map(len, pair)) <= _LONG_TEXT_CHARACTERS:
        return Levenshtein.normalized_distance(*pair)
    return Levenshtein.normalized_distance(*map(_PIECE.findall, pair))


def _find_broken_rules(text: str, label: str, rules: LabelRules) -> Iterator[str]:
    """The names of the rules that the label breaks, the cheapest first."""
    if not label:
        yield "empty"
    if rules.allowed and label not in rules.allowed:
        yield "not_allowed"
    if rules.single_line and "\n" in label and "\n" not in text:
        yield "several_lines"
    if any(search(p, label) and not search(p, text) for p in rules.reject_patterns):
        yield "pattern"
    if len(text) < _SHORT_TEXT_CHARACTERS:
        return
    if not rules.min_length_ratio <= len(label) / len(text) <= rules.max_length_ratio:
        yield "length_ratio"
    if label == text or (rules.max_edit_ratio == 1 and not rules.languages):
        return
    edit_ratio = measure_edit_ratio(text, label)
    if edit_ratio > _SAME_LANGUAGE_EDIT_RATIO and rules.languages:
        asked, given = (detect_language(t, tuple(rules.languages)) for t in (text, label))
        if asked and given and asked != given:
            yield "wrong_language"
    if edit_ratio > rules.max_edit_ratio:
        yield "over_edit"


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip().casefold())
