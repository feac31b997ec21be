import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from common.student.prompt import IGNORED, count_shared
from common.training.objectives.packing import can_pack, pack
from common.training.objectives.supervised import Supervised, compute_logits


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=256,
        intermediate_size=300,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def make_rows(*lengths, shared=12, learned=3):
    rng = random.Random(0)
    first = [rng.randrange(5, 200) for _ in range(shared)]
    rows = [first + [rng.randrange(5, 200) for _ in range(n)] for n in lengths]
    return [{"input_ids": r, "labels": [IGNORED] * (len(r) - learned) + r[-learned:]} for r in rows]


def take_gradient(model, batch):
    model.zero_grad()
    loss = Supervised.sum_loss(None, model, batch)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "rows",
    [
        make_rows(4, 9, 5, 4),
        make_rows(3, 8),  # a label that begins where the rows part
        make_rows(3, 3, 3, shared=20, learned=5),  # one that begins before
        make_rows(5),
    ],
)
def test_packed_rows_have_the_loss_and_gradient_of_rows_of_their_own(model, rows):
    packed = pack(rows)
    if packed is None:
        assert len(rows) == 1  # nothing is shared with itself
        return
    shared = count_shared([row["input_ids"] for row in rows])
    tokens = shared + sum(len(row["input_ids"]) - shared for row in rows)
    assert packed["input_ids"].shape == packed["position_ids"].shape == (1, tokens)
    loss, gradient = take_gradient(model, packed)
    total, sums = 0, None
    for row in rows:
        labels = torch.tensor(row["labels"])
        learned = (labels != IGNORED).nonzero().flatten()
        alone = {
            "input_ids": torch.tensor([row["input_ids"]]),
            "labels": labels[learned],
            "positions": learned - 1,
        }
        one, part = take_gradient(model, alone)
        total += one
        sums = part if sums is None else [a + b for a, b in zip(sums, part, strict=True)]
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, sums, rtol=1e-3, atol=1e-5)


def test_equal_rows_are_packed_too(model):
    rows = make_rows(4) * 3
    packed = pack(rows)
    assert packed["lengths"].tolist() == [16, 16, 16]
    logits = compute_logits(model, packed).reshape(3, 3, -1)
    torch.testing.assert_close(logits[0], logits[1])


@pytest.mark.parametrize("rows", [make_rows(40, 40, shared=0), make_rows(*[20] * 60)])
def test_packing_that_does_not_pay_is_left(rows):
    assert pack(rows) is None


def test_only_models_that_can_take_packed_rows(model):
    assert can_pack(model)
    state = MambaForCausalLM(
        MambaConfig(vocab_size=200, hidden_size=256, num_hidden_layers=2, state_size=4)
    )
    assert not can_pack(state)
    narrow = LlamaConfig(vocab_size=200, hidden_size=64, num_hidden_layers=1)
    assert not can_pack(LlamaForCausalLM(narrow))


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 4]], 2), ([[1], [2]], 0), ([[1, 2]], 2)],
)
def test_the_tokens_that_prompts_share(prompts, shared):
    assert count_shared(prompts) == shared
