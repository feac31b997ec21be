"""The interface of an objective: tensors from labels, and a loss."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from common.records import LabelRow

Encoded = dict[str, Any]
"""A row's `input_ids` (prompt and answer), its `labels` (the same, -100 for tokens without loss),
the `weights` of the learned tokens, if they differ, and what else the objective needs."""
Batch = dict[str, torch.Tensor]


class Objective(Protocol):
    """What training minimises; `is_reasoned` if it learns the teacher's reasoning, too."""

    is_reasoned: bool

    def prepare(self, model: Any) -> None:
        """Sees the model before the first batch."""

    def encode(self, row: LabelRow) -> Encoded:
        """Encodes a label row's label."""

    def encode_targets(self, row: LabelRow) -> list[Encoded]:
        """Encodes what is learned from a label row."""

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """The tensors of a batch: `labels` are the learned tokens, `lengths` those of the rows.

        `weights` are those of the learned tokens, if they differ.
        """

    def sum_loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The loss in nats, summed over the learned tokens."""
