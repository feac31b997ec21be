import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from common.student.greedy import can_share, decode, read_shared

SIZES = {"vocab_size": 300, "hidden_size": 64, "num_attention_heads": 4}
MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES, intermediate_size=90, num_hidden_layers=3, num_key_value_heads=2, head_dim=16
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=64, n_head=4, n_layer=2, n_positions=200)
    ),
}
SHARED = list(range(10, 40))
REST = [[50], [60, 61, 62, 63], [70, 71], [80] * 11, [50]]


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def answer_alone(model, prompt, count, ends):
    """By the whole sequence at each step, without a cache."""
    ids = list(prompt)
    while len(ids) - len(prompt) < count:
        with torch.inference_mode():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def list_tokens(answers):
    return [tokens for tokens, _ in answers]


def test_answers_are_those_of_separate_prompts(model):
    if not can_share(model):
        pytest.skip("its attention is not replaced")
    alone = [answer_alone(model, SHARED + rest, 40, []) for rest in REST]
    ends = [alone[1][5], alone[3][20]]
    expected = [answer_alone(model, SHARED + rest, 40, ends) for rest in REST]
    assert len({len(answer) for answer in expected}) > 1
    before = model.config._attn_implementation
    shared = read_shared(model, SHARED)
    assert list_tokens(decode(model, shared, REST, 40, ends)) == expected
    assert list_tokens(decode(model, shared, REST[:1], 1, [])) == [
        alone[0][:1]
    ]  # and it can be used again
    assert model.config._attn_implementation == before


def test_an_answer_has_the_log_probabilities_of_its_tokens_and_its_end():
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    (first, *_), _ = decode(model, read_shared(model, SHARED), REST[1:2], 9, [])[0]
    ((tokens, steps),) = decode(model, read_shared(model, SHARED), REST[1:2], 9, [first])
    assert (tokens, len(steps)) == ([], 1)
    ((tokens, steps),) = decode(model, read_shared(model, SHARED), REST[1:2], 9, [])
    ids = torch.tensor([SHARED + REST[1] + tokens])
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0].log_softmax(-1)
    places = range(ids.shape[1] - len(tokens) - 1, ids.shape[1] - 1)
    known = [float(expected[p, t]) for p, t in zip(places, tokens, strict=True)]
    assert [step.logprob for step in steps] == pytest.approx(known, abs=1e-4)
    margins = [float(expected[place].topk(2).values.exp().diff().abs()) for place in places]
    assert [step.margin for step in steps] == pytest.approx(margins, abs=1e-6)


def test_llamas_can_share_and_others_are_left_to_transformers():
    assert can_share(MODELS["llama"]())
    state = MambaConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2, state_size=4)
    assert not can_share(MambaForCausalLM(state))
    narrow = MistralConfig(
        **SIZES, intermediate_size=90, num_hidden_layers=2, num_key_value_heads=2, sliding_window=4
    )
    assert not can_share(MistralForCausalLM(narrow))


def test_many_scores_are_computed_in_parts(monkeypatch):
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    expected = list_tokens(decode(model, read_shared(model, SHARED), REST, 20, []))
    monkeypatch.setattr("common.student.greedy._MOST_SCORES", 1)
    assert list_tokens(decode(model, read_shared(model, SHARED), REST, 20, [])) == expected
