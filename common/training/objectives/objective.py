"""What an objective is: how a label becomes tensors, and what is minimised over them."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from common.records import LabelRow

Encoded = dict[str, list[int]]
"""A row in tokens: `input_ids`, prompt and answer; `labels`, the same with -100 where nothing is
learned; and what else the objective needs."""
Batch = dict[str, torch.Tensor]


class Objective(Protocol):
    """What training minimises."""

    def encode(self, row: LabelRow) -> Encoded:
        """A label row in tokens."""

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """The tensors of an update's rows; `labels` holds the tokens that are learned."""

    def sum_loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The loss of a batch, summed over the tokens that are learned, in nats."""
