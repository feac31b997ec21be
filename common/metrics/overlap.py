"""N-gram metrics: GLEU for grammatical error correction, and chrF."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from common.metrics.edits import tokenize
from common.metrics.statistics import Array, divide

_ORDER = 4
_DRAWS = 500
_MAX_ROW_DRAWS = 1_500_000
_RESAMPLED_DRAWS = 20
_CHARACTERS = 6
_BETA = 2.0


def measure_gleu(
    texts: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Array:
    """The statistics of GLEU: (rows, draws * 10).

    Of each draw: the numbers of tokens of prediction and reference; then for n = 1 to 4 the
    prediction's n-grams in the reference less those in the text alone, and all its n-grams. With
    several references a draw picks one per row: 500 draws, as in the published program, and fewer
    for more than 3,000 rows.
    """
    draws = 1
    if any(len(r) > 1 for r in references):
        draws = max(1, min(_DRAWS, _MAX_ROW_DRAWS // max(len(texts), 1)))
    rows = [
        [_count_gleu(text, prediction, reference) for reference in answers or [""]]
        for text, prediction, answers in zip(texts, predictions, references, strict=True)
    ]
    statistics = np.empty((len(rows), draws, 2 + 2 * _ORDER))
    for draw in range(draws):
        rng = random.Random(draw * 101)
        for i, choices in enumerate(rows):
            statistics[i, draw] = choices[rng.randint(0, len(choices) - 1)]
    return statistics.reshape(len(rows), -1)


def combine_gleu(sums: Array) -> Array:
    """GLEU from summed statistics, from 0 to 1, the mean over the draws.

    Source: C. Napoles, K. Sakaguchi, M. Post, J. Tetreault, GLEU without tuning (2016),
    arXiv:1605.02592, and their program. Tokens are those of `tokenize`.
    """
    sums = sums.reshape(*sums.shape[:-1], -1, 2 + 2 * _ORDER)
    lengths, matches, totals = sums[..., :2], sums[..., 2::2], sums[..., 3::2]
    is_positive = (sums > 0).all(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.log(matches / totals).mean(-1)
        brevity = np.minimum(0.0, 1 - lengths[..., 1] / lengths[..., 0])
        score = np.exp(brevity + precision)
    mean: Array = np.where(is_positive, score, 0.0).mean(-1)
    return mean


def thin_gleu(rows: Array) -> Array:
    """The statistics of 20 draws, enough for an interval."""
    return rows[:, : _RESAMPLED_DRAWS * (2 + 2 * _ORDER)]


def _count_gleu(text: str, prediction: str, reference: str) -> list[float]:
    sources, made, wanted = tokenize(text), tokenize(prediction), tokenize(reference)
    counts = [float(len(made)), float(len(wanted))]
    for n in range(1, _ORDER + 1):
        source, hypothesis, target = (_count_ngrams(t, n) for t in (sources, made, wanted))
        kept_errors = Counter({k: v for k, v in source.items() if k not in target})
        right = (hypothesis & target).total() - (hypothesis & kept_errors).total()
        counts += [max(right, 0), max(len(made) + 1 - n, 0)]
    return counts


def _count_ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) + 1 - n))


def count_chrf(text: str, prediction: str, references: Sequence[str]) -> list[float]:
    """The statistics of chrF: for n = 1 to 6 the n-grams of prediction, reference, and both.

    White space is ignored; the reference with the highest score counts.
    """
    del text
    choices = [_count_characters(prediction, reference) for reference in references or [""]]
    return max(choices, key=lambda counts: float(combine_chrf(np.array(counts, float))))


def combine_chrf(sums: Array) -> Array:
    """The chrF from summed statistics, from 0 to 100.

    Source: M. Popović, chrF: character n-gram F-score for automatic MT evaluation (WMT 2015); with
    beta 2, over the orders that occur in both, as in sacrebleu.
    """
    made, wanted, both = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counts = (made > 0) & (wanted > 0)
    orders = np.maximum(counts.sum(-1), 1)
    precision = divide(both * counts, made).sum(-1) / orders
    recall = divide(both * counts, wanted).sum(-1) / orders
    weight = _BETA * _BETA
    return divide(100 * (1 + weight) * precision * recall, weight * precision + recall)


def _count_characters(prediction: str, reference: str) -> list[float]:
    counts: list[float] = []
    for made, wanted in zip(_list_characters(prediction), _list_characters(reference), strict=True):
        # orders longer than the reference do not count
        counts += [made.total() if wanted else 0, wanted.total(), (made & wanted).total()]
    return counts


@lru_cache(maxsize=16)  # the references of a row
def _list_characters(text: str) -> list[Counter[str]]:
    plain = "".join(text.split())
    return [
        Counter(plain[i : i + n] for i in range(len(plain) + 1 - n))
        for n in range(1, _CHARACTERS + 1)
    ]
