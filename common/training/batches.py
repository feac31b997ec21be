"""The batch of each update."""

import random
from collections.abc import Sequence

_GROUP_BATCHES = 2
"""Rows are sorted by length within groups of this many batches.

Groups of 2 halve padding, to 7 %. Groups of 8 leave 2 %, with a held-out loss of 0.2329, against
0.2292 without groups and 0.2244 with 2 (built-in student, means of five seeds).
"""


def plan_batches(
    lengths: Sequence[int], batch_size: int, epochs: float, seed: int
) -> list[list[int]]:
    """The row indices of each update of the whole training.

    Every epoch has each row once, in a new order, in batches of similar length to save padding. The
    plan depends on the arguments alone, so resuming takes the next batch. The largest batch comes
    first: running out of memory fails at once.

    Args:
        lengths: of the rows, in tokens.
        batch_size: rows of an update; the last one of an epoch may have fewer.
        epochs: passes over the rows; half a pass is half of its batches.
        seed: of the order.
    """
    plan: list[list[int]] = []
    per_epoch = -(-len(lengths) // batch_size)
    total = max(1, round(per_epoch * epochs))
    epoch = 0
    while len(plan) < total:
        plan += _plan_epoch(lengths, batch_size, random.Random(f"{seed} {epoch}"))
        epoch += 1
    largest = max(range(per_epoch), key=lambda i: len(plan[i]) * max(lengths[j] for j in plan[i]))
    plan[0], plan[largest] = plan[largest], plan[0]
    return plan[:total]


def _plan_epoch(lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[list[int]]:
    order = list(range(len(lengths)))
    rng.shuffle(order)
    size = batch_size * _GROUP_BATCHES
    groups = (order[at : at + size] for at in range(0, len(order), size))
    order = [i for group in groups for i in sorted(group, key=lengths.__getitem__)]
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches
