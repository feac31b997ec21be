"""Supervised fine-tuning: the cross-entropy of the label's tokens."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from common.records import LabelRow
from common.student.prompt import IGNORED, encode_example
from common.tasks.task import StudentPrompt, Task
from common.training.objectives.objective import Batch, Encoded
from common.training.objectives.packing import can_pack, pack
from common.training.objectives.targets import TargetKind, list_targets

_LONG = 2048
"""Tokens from which edits are found in a coarser way, as the time grows with their square."""


class Supervised:
    """See `Objective`."""

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        targets: TargetKind = "label",
        edit_weight: float = 1.0,
    ) -> None:
        """`targets` and `edit_weight` are the train job's settings."""
        self._task, self._tokenizer = task, tokenizer
        self._targets, self._edit_weight = targets, edit_weight
        rationale = task.student.rationale
        self.is_reasoned = bool(rationale)
        self._rationale = rationale and task.model_copy(
            update={"student": StudentPrompt(prompt=rationale)}
        )
        self._has_weights = bool(targets != "label" or edit_weight != 1 or rationale)
        self._pad = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
        self._can_pack = False

    def prepare(self, model: Any) -> None:
        """Finds out whether the model takes packed batches."""
        self._can_pack = can_pack(model)

    def encode(self, row: LabelRow) -> Encoded:
        """Prompt, label and end-of-sequence token; the last two are learned."""
        return encode_example(self._tokenizer, self._task, row.text, row.label or "")

    def encode_targets(self, row: LabelRow) -> list[Encoded]:
        """The same for each target of the row, with weights if the settings or the task ask so."""
        found = []
        for label, weight in list_targets(row, self._task.label_rules.allowed, self._targets):
            encoded: Encoded = encode_example(self._tokenizer, self._task, row.text, label)
            if self._has_weights:
                encoded["weights"] = [weight] * _count_learned(encoded)
            if self._edit_weight != 1:
                self._weigh_edits(encoded, row.text)
            found.append(encoded)
        return found + self._encode_rationale(row)

    def _encode_rationale(self, row: LabelRow) -> list[Encoded]:
        """The teacher's reasoning, if the task wants it; it weighs as much as the label.

        Source: C.-Y. Hsieh et al., Distilling Step-by-Step! (ACL Findings 2023), with a weight of 1
        for the rationale's loss.
        """
        if not (self._rationale and row.reasoning):
            return []
        encoded: Encoded = encode_example(
            self._tokenizer, self._rationale, row.text, row.reasoning.strip()
        )
        count = _count_learned(encoded)
        weight = min(1.0, _count_learned(self.encode(row)) / count)
        return [encoded | {"weights": [weight] * count}]

    def _weigh_edits(self, encoded: Encoded, text: str) -> None:
        """Gives the label's tokens that differ from the text's their weight.

        Source: M. Junczys-Dowmunt et al., Approaching Neural Grammatical Error Correction as a
        Low-Resource Machine Translation Task (NAACL 2018), edit-weighted MLE.
        """
        before = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        after = [token for token in encoded["labels"] if token != IGNORED]
        is_long = len(after) > _LONG
        differ = SequenceMatcher(None, before.input_ids, after[:-1], autojunk=is_long)
        for tag, _, _, first, end in differ.get_opcodes():
            if tag != "equal":  # after a deletion, the token that closes the gap
                for place in range(first, max(end, first + 1)):
                    encoded["weights"][place] *= self._edit_weight

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """The batch, packed if that pays, else padded on the right.

        `input_ids`: (rows, longest row), or (1, tokens) with `position_ids` and `attention_mask`;
        `labels`: (learned tokens); `positions`: (learned tokens), indices into the flattened rows
        of the tokens that predict them; `weights`: (learned tokens), if the rows have some;
        `lengths`: (rows). With causal attention, right padding needs no mask, which allows faster
        kernels.
        """
        batch = (pack(rows) if self._can_pack else None) or self._pad_rows(rows)
        if "weights" in rows[0]:
            batch["weights"] = torch.tensor([weight for row in rows for weight in row["weights"]])
        return batch

    def _pad_rows(self, rows: Sequence[Encoded]) -> Batch:
        padded = self._pad([{n: row[n] for n in ("input_ids", "labels")} for row in rows])
        labels = padded["labels"].flatten()
        learned = (labels != IGNORED).nonzero().flatten()
        return {
            "input_ids": padded["input_ids"],
            "labels": labels[learned],
            "positions": learned - 1,  # a row's first token is never learned
            "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
        }

    def sum_loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The cross-entropy of the learned tokens, by their weights."""
        logits = compute_logits(model, batch).float()
        if "weights" not in batch:
            return cross_entropy(logits, batch["labels"], reduction="sum")
        losses = cross_entropy(logits, batch["labels"], reduction="none")
        return (losses * batch["weights"]).sum()


def _count_learned(encoded: Encoded) -> int:
    return sum(token != IGNORED for token in encoded["labels"])


def compute_logits(model: Any, batch: Batch) -> torch.Tensor:
    """A causal model's logits at the `positions` of a batch: (positions, vocabulary).

    The head computes those positions only, a third of all: fp32 logits of a vocabulary of 32,000
    and their gradients take more memory than anything else.
    """
    positions = batch["positions"]
    names = ("input_ids", "position_ids", "attention_mask")
    inputs = {name: batch[name] for name in names if name in batch}

    def select(head: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0].flatten(0, 1)[positions],)

    head = model.get_output_embeddings()
    if head is None:  # in some custom models
        everything: torch.Tensor = model(**inputs, use_cache=False).logits
        return everything.flatten(0, 1)[positions]
    hook = head.register_forward_pre_hook(select)
    try:
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits
