"""Distillation of tokens: the teacher's likeliest tokens by their probabilities.

For a teacher with the student's tokenizer, such as Llama-2 for TinyLlama, whose labels have
log-probabilities. Each learned token has two targets: itself, and the teacher's distribution over
its likeliest tokens. Source: G. Hinton et al., Distilling the Knowledge in a Neural Network (2015).
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
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
    def _texts(self) -> list[str]:
        """The text of each of the student's tokens, with the space before it."""
        vocabulary = self._tokenizer.get_vocab()
        texts = [""] * (max(vocabulary.values()) + 1)
        is_of_bytes = any(token.startswith("\u0120") for token in vocabulary)
        for token, id in vocabulary.items():
            spelled = token.replace("\u2581", " ")
            if is_of_bytes:
                spelled = self._tokenizer.convert_tokens_to_string([token])
            texts[id] = spelled
        return texts

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        return {text: id for id, text in enumerate(self._texts)}

    def encode_targets(self, row: LabelRow) -> list[Encoded]:
        """The label, with the teacher's likeliest tokens where they are known."""
        encoded = self.encode(row)
        learned = [token for token in encoded["labels"] if token != IGNORED]
        likely = [*self._find_likely(row, learned[:-1]), {}]
        pairs = list(zip(learned, likely, strict=True))
        encoded["likely"] = [list(found) or [token] for token, found in pairs]
        encoded["shares"] = [list(found.values()) or [1.0] for found in likely]
        return [encoded]

    def _find_likely(self, row: LabelRow, learned: list[int]) -> list[dict[int, float]]:
        """The probabilities of the likeliest tokens at each place of the label.

        All are empty unless the student splits the label as the teacher did, but for the space
        before the first token, which servers write or leave out.
        """
        own, tokens = [self._texts[id] for id in learned], row.tokens or []
        first, rest = ([text.lstrip(" ") for text in tokens[:1]], tokens[1 : len(own)])
        is_same = first == [text.lstrip(" ") for text in own[:1]] and rest == own[1:]
        if not (own and is_same and row.top_tokens and row.top_logprobs):
            return [{} for _ in own]
        missing = len(own[0]) - len(tokens[0])  # spaces, fewer than none if they are too many
        likely = []
        places = zip(row.top_tokens, row.top_logprobs, strict=True)
        for place, (names, logprobs) in enumerate(islice(places, len(own))):
            found: dict[int, float] = {}
            for name, logprob in zip(names, logprobs, strict=True):
                spelled = _shift(name, missing) if place == 0 else name
                if (id := self._ids.get(spelled)) is not None:
                    found[id] = found.get(id, 0.0) + math.exp(logprob)
            total = sum(found.values())
            likely.append({id: share / total for id, share in found.items()} if total else {})
        return likely

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


def _shift(name: str, spaces: int) -> str:
    """A token with so many more spaces before it, or fewer."""
    return " " * spaces + name if spaces >= 0 else name.removeprefix(" " * -spaces)
