"""Rows of a batch as one row without padding, with the tokens that they share only once.

All prompts of a task begin alike: the chat template, the task's instruction. A packed batch has
those tokens once, then the rest of each row. A token attends to the shared ones and to those before
it in its own row, at its own position: the outputs are those of separate rows.
"""

from collections.abc import Sequence
from typing import Any

import torch

from common.student.prompt import IGNORED, count_shared
from common.training.objectives.objective import Batch, Encoded

_MOST_TOKENS = 1024
"""Attention over all pairs of a longer row takes what packing saves."""
_MOST_SHARE = 0.8
"""Packing pays if at most this share of the padded tokens is left."""
_LEAST_WIDTH = 256
"""Narrower students spend their time on other things than products."""
_TOLERANCE = 0.02


def pack(rows: Sequence[Encoded]) -> Batch | None:
    """The packed batch, or None if that does not pay.

    `input_ids` and `position_ids`: (1, tokens); `attention_mask`: (1, 1, tokens, tokens), True
    where the first may attend to the second; `labels`, `positions` and `lengths` as in
    `Supervised.collate`.
    """
    ids = [row["input_ids"] for row in rows]
    shared = min(count_shared(ids), min(map(len, ids)) - 1)
    tokens = shared + sum(len(row) - shared for row in ids)
    if tokens > _MOST_TOKENS or tokens > _MOST_SHARE * len(ids) * max(map(len, ids)):
        return None
    flat, places, owners = ids[0][:shared], list(range(shared)), [0] * shared
    labels, positions = [], []
    for owner, row in enumerate(rows, 1):
        start = len(flat) - shared  # of this row's token 0, if it stood before its own tokens
        for place in range(1, len(row["input_ids"])):
            if row["labels"][place] != IGNORED:
                labels.append(row["labels"][place])
                positions.append(place - 1 if place <= shared else start + place - 1)
        flat = flat + row["input_ids"][shared:]
        places += range(shared, len(row["input_ids"]))
        owners += [owner] * (len(row["input_ids"]) - shared)
    of, number = torch.tensor(owners), torch.arange(tokens)
    is_visible = (of[None] == 0) | (of[None] == of[:, None])
    mask = is_visible & (number[None] <= number[:, None])
    return {
        "input_ids": torch.tensor([flat]),
        "position_ids": torch.tensor([places]),
        "attention_mask": mask[None, None],
        "labels": torch.tensor(labels),
        "positions": torch.tensor(positions),
        "lengths": torch.tensor([len(row) for row in ids]),
    }


@torch.inference_mode()
def can_pack(model: Any) -> bool:
    """Whether packing pays, and a model's outputs for packed rows are those for separate rows.

    The latter is not so where layers pass on a state, or where attention knows no mask or position.
    """
    if model.config.get_text_config().hidden_size < _LEAST_WIDTH:
        return False
    first, last = list(range(5, 15)), [[20, 21, 22], [30], [40, 41, 42, 43, 44]]
    rows = [first + own for own in last]
    encoded: list[Encoded] = [{"input_ids": r, "labels": [IGNORED, *r[1:]]} for r in rows]
    packed = pack(encoded)
    assert packed is not None
    try:
        together = model(
            **{
                name: packed[name].to(model.device)
                for name in ("input_ids", "position_ids", "attention_mask")
            },
            use_cache=False,
        ).logits[0, packed["positions"]]
        alone = torch.cat(
            [
                model(input_ids=torch.tensor([r], device=model.device), use_cache=False).logits[
                    0, :-1
                ]
                for r in rows
            ]
        )
    except (ValueError, TypeError, RuntimeError, IndexError):
        return False
    difference = (together.float() - alone.float()).abs().max()
    return bool(difference <= _TOLERANCE * alone.float().abs().max())
