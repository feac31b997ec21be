"""What a system changed in a text, token by token.

The edits are the maximal runs of differing tokens, found by the standard library's difflib. They
are not those of ERRANT or M2, whose figures are therefore not comparable.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from common.metrics.statistics import Array, divide

_TOKEN = re.compile(r"\w+|[^\w\s]")


class Edit(NamedTuple):
    """Tokens `start` to `end` of the text, without the latter, become `tokens`."""

    start: int
    end: int
    tokens: tuple[str, ...]

    @property
    def places(self) -> set[tuple[str, int]]:
        """The tokens that are changed; or the gap in which something is put."""
        if self.start == self.end:
            return {("gap", self.start)}
        return {("token", i) for i in range(self.start, self.end)}

    @property
    def reach(self) -> set[tuple[str, int]]:
        """These, and the gaps within and around them: where else the change may be seen to be."""
        return self.places | {("gap", i) for i in range(self.start, self.end + 1)}


def tokenize(text: str) -> list[str]:
    """Words, and each other sign that is no white space."""
    return _TOKEN.findall(text)


@lru_cache(maxsize=100_000)
def find_edits(text: str, changed: str) -> tuple[Edit, ...]:
    """What was changed, in the order of the text."""
    before, after = tokenize(text), tokenize(changed)
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    return tuple(
        Edit(i, j, tuple(after[k:m]))
        for kind, i, j, k, m in matcher.get_opcodes()
        if kind != "equal"
    )


def count_edits(text: str, prediction: str, references: Sequence[str]) -> tuple[int, int, int]:
    """Edits that are right, wrong, and missing, by the reference for which they are best."""
    made = set(find_edits(text, prediction))
    counts = []
    for reference in references:
        wanted = set(find_edits(text, reference))
        counts.append((len(made & wanted), len(made - wanted), len(wanted - made)))
    return max(counts, key=_rank, default=(0, len(made), 0))


def _rank(counts: tuple[int, int, int]) -> tuple[float, ...]:
    right, wrong, missing = counts
    return float(combine_f05(np.array(counts, float))), right, -wrong, -missing


def combine_precision(sums: Array) -> Array:
    """The share of the edits that are right; 1 of none, as in ERRANT."""
    return divide(sums[..., 0], sums[..., 0] + sums[..., 1], empty=1.0)


def combine_recall(sums: Array) -> Array:
    """The share of the references' edits that were made; 1 of none, as in ERRANT."""
    return divide(sums[..., 0], sums[..., 0] + sums[..., 2], empty=1.0)


def combine_f05(sums: Array) -> Array:
    """F0.5 of edits: precision counts twice as much as recall.

    Source: H. T. Ng et al., The CoNLL-2014 shared task on grammatical error correction.
    """
    precision, recall = combine_precision(sums), combine_recall(sums)
    return divide(1.25 * precision * recall, 0.25 * precision + recall)


def edits_too_much(text: str, prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction changes a place that each reference leaves as it is; else 0."""
    made = find_edits(text, prediction)
    return float(all(_exceeds(made, find_edits(text, r)) for r in references))


def edits_too_little(text: str, prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction leaves a place as it is that each reference changes; else 0."""
    made = find_edits(text, prediction)
    return float(all(_exceeds(find_edits(text, r), made) for r in references))


def _exceeds(edits: Sequence[Edit], others: Sequence[Edit]) -> bool:
    """Whether some of the edits are at places where none of the others are."""
    places = {place for edit in edits for place in edit.places}
    return bool(places - {place for edit in others for place in edit.reach})
