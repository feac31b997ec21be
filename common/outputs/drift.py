"""Drift: whether inputs are unlike the texts that the student has learned from."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from common.tasks.languages import LANGUAGES, detect_language

_WORD = re.compile(r"[^\W\d_]+")
_LENGTH, _WRITING, _WORDS, _CONFIDENCE = 0.2, 0.1, 0.05, 0.05
"""What counts as different, see `Drift`."""


class Drift(TypedDict, total=False):
    """How a sample of the inputs differs from one of the training texts.

    Attributes:
        length: the Kolmogorov-Smirnov distance of the lengths in characters; drift from 0.2 on.
        writing: half the sum of the differences in the shares of languages, or of writing systems
            where the language is not certain; drift from 0.1 on.
        unseen_words: the share of words that no training text has. Drift from 0.05 above
            `usual_unseen_words`, that of half of the training texts by the other half.
        confidence: the mean; drift if it is 0.05 below `usual_confidence`, that of the test rows.
    """

    length: float
    writing: float
    unseen_words: float
    usual_unseen_words: float
    confidence: float | None
    usual_confidence: float | None


def measure_drift(
    texts: Sequence[str],
    trained: Sequence[str],
    languages: Sequence[str],
    confidence: float | None,
    usual_confidence: float | None,
) -> Drift:
    """Compares texts with those of the training; each has at least two."""
    words, known = _count_words(texts), _count_words(trained)
    return {
        "length": _measure_distance([*map(len, texts)], [*map(len, trained)]),
        "writing": _compare_writing(texts, trained, languages),
        "unseen_words": _measure_unseen(words, known),
        "usual_unseen_words": _measure_unseen(
            _count_words(trained[::2]), _count_words(trained[1::2])
        ),
        "confidence": confidence,
        "usual_confidence": usual_confidence,
    }


def describe_drift(drift: Drift) -> list[str]:
    """A phrase for each thing that differs."""
    found = []
    if drift["length"] >= _LENGTH:
        found.append(f"their lengths differ (distance {drift['length']:.2f})")
    if drift["writing"] >= _WRITING:
        found.append(f"{drift['writing']:.0%} are in another language or writing system")
    unseen, usual = drift["unseen_words"], drift["usual_unseen_words"]
    if unseen >= usual + _WORDS:
        found.append(f"{unseen:.0%} of the words are new, where {usual:.0%} are usual")
    sure, usually = drift["confidence"], drift["usual_confidence"]
    if sure is not None and usually is not None and sure <= usually - _CONFIDENCE:
        found.append(f"the mean confidence is {sure:.2f}, where {usually:.2f} is usual")
    return found


def _measure_distance(some: Sequence[int], others: Sequence[int]) -> float:
    """The largest difference of the two distributions."""
    one, other = np.sort(some), np.sort(others)
    places = np.concatenate([one, other])
    below = np.searchsorted(one, places, "right") / len(one)
    return float(np.abs(below - np.searchsorted(other, places, "right") / len(other)).max())


def _compare_writing(
    texts: Sequence[str], trained: Sequence[str], languages: Sequence[str]
) -> float:
    known = tuple(languages or sorted(LANGUAGES))

    def count(group: Sequence[str]) -> Counter[str]:
        return Counter(detect_language(text, known) or _find_writing(text) for text in group)

    one, other = count(texts), count(trained)
    shares = (abs(one[n] / len(texts) - other[n] / len(trained)) for n in {*one, *other})
    return sum(shares) / 2


def _find_writing(text: str) -> str:
    """The writing system of most of a text's letters, such as LATIN."""
    letters = (unicodedata.name(c, "").partition(" ")[0] for c in text[:200] if c.isalpha())
    return next((name for name, _ in Counter(letters).most_common(1)), "")


def _count_words(texts: Sequence[str]) -> Counter[str]:
    return Counter(word for text in texts for word in _WORD.findall(text.casefold()))


def _measure_unseen(words: Counter[str], known: Counter[str]) -> float:
    new = sum(count for word, count in words.items() if word not in known)
    return new / max(1, words.total())
