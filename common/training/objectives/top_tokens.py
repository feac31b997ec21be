"""Distillation of tokens: the teacher's likeliest tokens by their probabilities.

For a teacher with the student's tokenizer, such as Llama-2 for TinyLlama, whose labels have
log-probabilities. Each learned token has two targets: itself, and the teacher's distribution over
its likeliest tokens. Source: G. Hinton et al., Distilling the Knowledge in a Neural Network (2015).
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from common.records import LabelRow
from common.student.prompt import IGNORED
from common.training.objectives.objective import Batch, Encoded
from common.training.objectives.supervised import Supervised, compute_logits

_SHARE = 0.5
"""Of the teacher's distribution in the loss; the rest is the label's."""


class TopTokens(Supervised):
    """See `Objective`. A label whose tokens are not the student's is learned as it is."""

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        """The student's tokens by their text, with the space before them."""
        return {_spell(token): id for token, id in self._tokenizer.get_vocab().items()}

    def encode_targets(self, row: LabelRow) -> list[Encoded]:
        """The label, with the teacher's likeliest tokens where they are known."""
        encoded = self.encode(row)
        learned = [token for token in encoded["labels"] if token != IGNORED]
        likely = self._find_likely(row, learned[:-1])
        encoded["likely"] = [
            list(found) or [token] for token, found in zip(learned, likely, strict=True)
        ]
        encoded["shares"] = [list(found.values()) or [1.0] for found in likely]
        return [encoded]

    def _find_likely(self, row: LabelRow, learned: list[int]) -> list[dict[int, float]]:
        """The probabilities of the likeliest tokens at each place, with an empty one for the end.

        All are empty unless the student splits the label as the teacher did.
        """
        nothing: list[dict[int, float]] = [{} for _ in range(len(learned) + 1)]
        tokens = [_spell(token) for token in row.tokens or ()]
        own = [_spell(token) for token in self._tokenizer.convert_ids_to_tokens(learned)]
        if not row.top_tokens or not row.top_logprobs or not _are_same(tokens[: len(own)], own):
            return nothing
        for place, (names, logprobs) in enumerate(
            zip(row.top_tokens[: len(own)], row.top_logprobs, strict=False)
        ):
            found = {
                self._ids[name]: math.exp(logprob)
                for name, logprob in zip(map(_spell, names), logprobs, strict=True)
                if name in self._ids
            }
            total = sum(found.values())
            nothing[place] = {id: share / total for id, share in found.items()} if total else {}
        return nothing

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """As `Supervised`, with `likely` and `shares`: (learned tokens, most likely tokens)."""
        batch = super().collate(rows)
        likely = [ids for row in rows for ids in row.get("likely", ())]
        shares = [values for row in rows for values in row.get("shares", ())]
        if likely:
            widest = max(map(len, likely))
            batch["likely"] = torch.tensor([ids + [0] * (widest - len(ids)) for ids in likely])
            batch["shares"] = torch.tensor([s + [0.0] * (widest - len(s)) for s in shares])
        return batch

    def sum_loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The cross-entropy with the label and, as much, with the teacher's distribution."""
        if "likely" not in batch:
            return super().sum_loss(model, batch)
        logprobs = compute_logits(model, batch).float().log_softmax(-1)
        hard = -logprobs.gather(1, batch["labels"][:, None]).sum()
        soft = -(logprobs.gather(1, batch["likely"]) * batch["shares"]).sum()
        return (1 - _SHARE) * hard + _SHARE * soft


def _spell(token: str) -> str:
    """A token's text: tokenizers write its space as \u2581 or \u0120."""
    return token.replace("\u2581", " ").replace("\u0120", " ")


def _are_same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether tokens are the same, but for a space before the first one."""
    return [t.lstrip() for t in one[:1]] == [t.lstrip() for t in other[:1]] and one[1:] == other[1:]
