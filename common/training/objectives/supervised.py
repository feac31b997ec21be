"""Supervised fine-tuning: the cross-entropy of the label's tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from common.records import LabelRow
from common.student.prompt import IGNORED, encode_example
from common.tasks.task import Task
from common.training.objectives.objective import Batch, Encoded
from common.training.objectives.packing import can_pack, pack


class Supervised:
    """See `Objective`."""

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
        self._task, self._tokenizer = task, tokenizer
        self._pad = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
        self._can_pack = False

    def prepare(self, model: Any) -> None:
        """Finds out whether the model takes packed batches."""
        self._can_pack = can_pack(model)

    def encode(self, row: LabelRow) -> Encoded:
        """Prompt, label and end-of-sequence token; the last two are learned."""
        return encode_example(self._tokenizer, self._task, row.text, row.label or "")

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """The batch, packed if that pays, else padded on the right.

        `input_ids`: (rows, longest row), or (1, tokens) with `position_ids` and `attention_mask`;
        `labels`: (learned tokens); `positions`: (learned tokens), indices into the flattened rows
        of the tokens that predict them; `lengths`: (rows). With causal attention, right padding
        needs no mask, which allows faster kernels.
        """
        packed = pack(rows) if self._can_pack else None
        if packed is not None:
            return packed
        padded = self._pad(list(rows))
        labels = padded["labels"].flatten()
        learned = (labels != IGNORED).nonzero().flatten()
        return {
            "input_ids": padded["input_ids"],
            "labels": labels[learned],
            "positions": learned - 1,  # a row's first token is never learned
            "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
        }

    def sum_loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The cross-entropy of the learned tokens."""
        logits = compute_logits(model, batch)
        return cross_entropy(logits.float(), batch["labels"], reduction="sum")


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
