import random
from types import SimpleNamespace

import pytest
import torch

from common.student.prompt import IGNORED
from common.tasks.task import Task
from common.training.batches import plan_batches
from common.training.objectives.supervised import Supervised

LENGTHS = [(7 * i) % 90 + 10 for i in range(1003)]


def test_each_epoch_has_every_row_once_in_an_order_of_its_own():
    plan = plan_batches(LENGTHS, batch_size=8, epochs=2, seed=0)
    assert len(plan) == 2 * 126
    first, second = plan[:126], plan[126:]
    assert sorted(i for batch in second for i in batch) == list(range(1003))
    assert sorted(i for batch in first for i in batch) == list(range(1003))
    assert first != second
    assert sorted(len(batch) for batch in first) == [3] + 125 * [8]


def test_batches_hold_rows_of_similar_length():
    def count_padding(plan):
        return sum(len(b) * max(LENGTHS[i] for i in b) - sum(LENGTHS[i] for i in b) for b in plan)

    order = random.Random(0).sample(range(1003), 1003)
    shuffled = [order[at : at + 8] for at in range(0, 1003, 8)]
    plan = plan_batches(LENGTHS, batch_size=8, epochs=1, seed=0)
    assert count_padding(plan) < 0.6 * count_padding(shuffled)


@pytest.mark.parametrize("count", [20, 203, 1003])
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_batch_comes_first(count, seed):
    plan = plan_batches(LENGTHS[:count], batch_size=8, epochs=2, seed=seed)
    sizes = [len(batch) * max(LENGTHS[i] for i in batch) for batch in plan]
    epoch = -(-count // 8)
    assert sizes[0] == max(sizes[:epoch])
    assert sorted(i for batch in plan[:epoch] for i in batch) == list(range(count))


@pytest.mark.parametrize(("epochs", "updates"), [(0.5, 63), (1, 126), (2.5, 315), (1e-9, 1)])
def test_parts_of_an_epoch(epochs, updates):
    assert len(plan_batches(LENGTHS, batch_size=8, epochs=epochs, seed=0)) == updates


def test_the_plan_depends_on_the_seed_alone():
    def make(seed):
        return plan_batches(LENGTHS, batch_size=8, epochs=2, seed=seed)

    assert make(1) == make(1)
    assert make(1) != make(2)


def test_a_batch_names_the_labels_and_the_tokens_that_predict_them():
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]},
        {"input_ids": [9, 2], "labels": [IGNORED, 2]},
    ]
    tokenizer = SimpleNamespace(pad_token_id=0)
    batch = Supervised(Task(name="any"), tokenizer).collate(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 2, 0, 0]]
    assert batch["labels"].tolist() == [7, 8, 2]
    assert batch["positions"].tolist() == [1, 2, 4]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
