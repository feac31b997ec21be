"""What a student learns for a text: the label, or each of the teacher's answers by its share."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from common.records import LabelRow

TargetKind = Literal["label", "weighted", "shares"]
Target = tuple[str, float]
"""A label and its weight in the loss; a text's weights add up to 1 at most."""
_MIN_MASS = 0.5
"""The least probability of all allowed labels together; else the answer begins otherwise."""


def list_targets(row: LabelRow, allowed: Sequence[str], kind: TargetKind) -> list[Target]:
    """The targets of a row with status ok.

    label: its label. weighted: its label, by how sure the teacher is of it. shares: all labels that
    the samples gave, or that the log-probabilities of the first token tell, by their shares.
    """
    label = row.label or ""
    if kind == "label":
        return [(label, 1.0)]
    shares = _list_shares(row, allowed)
    if kind == "shares" and shares:
        return shares
    if shares:
        return [(label, dict(shares).get(label, 0.0))]
    return [(label, 1.0 if kind == "shares" else _measure_confidence(row))]


def is_told(row: LabelRow) -> bool:
    """Whether a row tells how sure the teacher is: it has several samples or log-probabilities."""
    return bool(row.shares or row.token_logprobs)


def _list_shares(row: LabelRow, allowed: Sequence[str]) -> list[Target]:
    """The shares of the labels that a row tells; none if it has one label alone."""
    if row.labels and row.shares:
        return list(zip(row.labels, row.shares, strict=True))
    if allowed and row.top_tokens and row.top_logprobs:
        return _read_first_token(row.top_tokens[0], row.top_logprobs[0], allowed)
    return []


def _read_first_token(
    tokens: Sequence[str], logprobs: Sequence[float], allowed: Sequence[str]
) -> list[Target]:
    """The probability of each allowed label by the token that it begins with.

    Tokens that begin several labels tell nothing. No labels are told if the others together are
    less likely than tokens of other answers.
    """
    found: Counter[str] = Counter()
    for token, logprob in zip(tokens, logprobs, strict=True):
        start = token.strip().casefold()
        fitting = [label for label in allowed if label.casefold().startswith(start)]
        if start and len(fitting) == 1:
            found[fitting[0]] += math.exp(logprob)  # type: ignore[assignment]
    mass = sum(found.values())
    if mass < _MIN_MASS:
        return []
    return [(label, share / mass) for label, share in found.most_common()]


def _measure_confidence(row: LabelRow) -> float:
    """The mean probability of the answer's tokens, as a geometric mean; 1 if it is not known."""
    known = [logprob for logprob in row.token_logprobs or () if logprob is not None]
    return math.exp(sum(known) / len(known)) if known else 1.0
