"""Edits of a text, token by token.

An edit is a maximal run of differing tokens between those of a longest common subsequence. Figures
are not comparable with those of ERRANT or M2.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from common.metrics.statistics import Array, divide

_TOKEN = re.compile(r"\w+|[^\w\s]")
_LONG = 20_000
"""Characters from which edits are not kept in memory."""
_MOST_PAIRS = 10**9
"""Pairs of tokens, a bit each, in which a longest common subsequence is found. Beyond, the tokens
are aligned by the least Levenshtein distance, which needs little memory."""


class Edit(NamedTuple):
    """Replaces tokens `start` to `end` (exclusive) of the text by `tokens`."""

    start: int
    end: int
    tokens: tuple[str, ...]

    @property
    def places(self) -> set[tuple[str, int]]:
        """The changed tokens; for an insertion, its gap."""
        if self.start == self.end:
            return {("gap", self.start)}
        return {("token", i) for i in range(self.start, self.end)}

    @property
    def reach(self) -> set[tuple[str, int]]:
        """The places, and the gaps within and around them."""
        return self.places | {("gap", i) for i in range(self.start, self.end + 1)}


def tokenize(text: str) -> list[str]:
    """Words, and single characters of other kinds, without white space."""
    return _TOKEN.findall(text)


def find_edits(text: str, changed: str) -> tuple[Edit, ...]:
    """The edits from `text` to `changed`, in order."""
    is_long = len(text) + len(changed) > _LONG
    return _find_edits(text, changed) if is_long else _recall_edits(text, changed)


def _find_edits(text: str, changed: str) -> tuple[Edit, ...]:
    from rapidfuzz.distance import LCSseq, Levenshtein  # the train job lacks it

    before, after = tokenize(text), tokenize(changed)
    numbers: dict[str, int] = {}
    coded = [[numbers.setdefault(token, len(numbers)) for token in t] for t in (before, after)]
    aligner = LCSseq if len(before) * len(after) <= _MOST_PAIRS else Levenshtein
    blocks = aligner.opcodes(*coded).as_matching_blocks()
    edits, i, k = [], 0, 0
    for kept in blocks:  # the last one is empty, at the end of both
        if (i, k) != (kept.a, kept.b):
            edits.append(Edit(i, kept.a, tuple(after[k : kept.b])))
        i, k = kept.a + kept.size, kept.b + kept.size
    return tuple(edits)


_recall_edits = lru_cache(maxsize=100_000)(_find_edits)


def count_edits(text: str, prediction: str, references: Sequence[str]) -> tuple[int, int, int]:
    """The numbers of right, wrong and missing edits, by the reference with the best F0.5."""
    made = set(find_edits(text, prediction))
    choices = [set(find_edits(text, reference)) for reference in references]
    counts = [(len(made & w), len(made - w), len(w - made)) for w in choices]
    return max(counts, key=_rank, default=(0, len(made), 0))


def _rank(counts: tuple[int, int, int]) -> tuple[float, ...]:
    right, wrong, missing = counts
    return float(combine_f05(np.array(counts, float))), right, -wrong, -missing


def combine_precision(sums: Array) -> Array:
    """The share of edits that are right; 1 without edits, as in ERRANT."""
    return divide(sums[..., 0], sums[..., 0] + sums[..., 1], empty=1.0)


def combine_recall(sums: Array) -> Array:
    """The share of the reference's edits that were made; 1 without any, as in ERRANT."""
    return divide(sums[..., 0], sums[..., 0] + sums[..., 2], empty=1.0)


def combine_f05(sums: Array) -> Array:
    """F0.5 of edits, which weights precision twice as much as recall.

    Source: H. T. Ng et al., The CoNLL-2014 shared task on grammatical error correction.
    """
    precision, recall = combine_precision(sums), combine_recall(sums)
    return divide(1.25 * precision * recall, 0.25 * precision + recall)


def edits_too_much(text: str, prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction changes a place that every reference keeps; else 0."""
    made = find_edits(text, prediction)
    return float(all(_exceeds(made, find_edits(text, r)) for r in references))


def edits_too_little(text: str, prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction keeps a place that every reference changes; else 0."""
    made = find_edits(text, prediction)
    return float(all(_exceeds(find_edits(text, r), made) for r in references))


def _exceeds(edits: Sequence[Edit], others: Sequence[Edit]) -> bool:
    """Whether some edits are at places that no other edit reaches."""
    places = {place for edit in edits for place in edit.places}
    return bool(places - {place for edit in others for place in edit.reach})
