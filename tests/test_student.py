import json
import shutil

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from common.errors import InputError, SettingsError
from common.sections import EvaluateSettings
from common.student.generation import TransformersRuntime, sort_by_length, take_batch
from common.student.memory import explaining_memory
from common.student.prompt import (
    encode_example,
    encode_few_shot_prompt,
    encode_prompt,
    load_tokenizer,
)
from common.student.source import find_student
from common.student.student import check_student, open_student
from common.student.weights import check_device, load_weights
from common.tasks.task import FewShot, StudentPrompt, Task

TASK = Task(name="copy", student=StudentPrompt(prompt="Say:\n{text}"))


def generate(model, tokenizer, prompts, **limits):
    return TransformersRuntime(model, tokenizer).generate(prompts, **limits)


@pytest.fixture
def builtin(settings):
    return settings(STUDENT__MODEL="builtin")


@pytest.fixture
def tokenizer(builtin):
    return load_tokenizer(builtin)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_required_and_not_there_is_an_error(settings, caplog):
    caplog.set_level("INFO")
    check_device(settings())
    assert "on the CPU, in " in caplog.text
    assert ": no GPU can be used (" in caplog.text
    with pytest.raises(SettingsError, match="DISTILL_STUDENT__REQUIRE_GPU=true, and no GPU"):
        check_device(settings(STUDENT__REQUIRE_GPU="true"))


def test_the_loss_covers_the_label_and_the_end_of_sequence_only(tokenizer):
    row = encode_example(tokenizer, TASK, "a text", "The label.")
    learned = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learned) == "The label.</s>"
    assert row["input_ids"][-len(learned) :] == learned
    assert len(row["input_ids"]) == len(row["labels"])


@pytest.mark.parametrize("template", [True, False])
def test_training_and_evaluation_see_the_same_prompt(tokenizer, template):
    if not template:
        tokenizer.chat_template = None
    prompt = encode_prompt(tokenizer, TASK, "a text")
    row = encode_example(tokenizer, TASK, "a text", "label")
    assert row["input_ids"][: len(prompt)] == prompt
    assert set(row["labels"][: len(prompt)]) == {-100}
    text = "<|user|>Say:\na text<|assistant|>" if template else "Say:\na text\n"
    assert tokenizer.decode(prompt) == text


@pytest.mark.parametrize("template", ["{{ bos_token }}{{ messages[0]['content'] }}", None])
def test_a_prompt_begins_with_one_begin_of_sequence_and_does_not_end(tokenizer, template):
    """Tokenizers of Llama's kind add BOS by themselves, some add EOS too."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<|user|>"
    ids = [("<|user|>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A </s>", special_tokens=ids
    )
    tokenizer.chat_template = template
    prompt = encode_prompt(tokenizer, TASK, "x")
    assert prompt[0] == tokenizer.bos_token_id
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in prompt
    answer = encode_example(tokenizer, TASK, "x", "y")["input_ids"][len(prompt) :]
    assert answer.count(tokenizer.eos_token_id) == 1


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_greedy_output_of_a_batch_equals_one_at_a_time(settings, quantization):
    chosen = settings(STUDENT__MODEL="builtin", STUDENT__QUANTIZATION=quantization)
    tokenizer, model = load_tokenizer(chosen), load_weights(chosen)
    assert any(isinstance(m, Linear4bit) for m in model.modules()) == (quantization == "nf4")
    texts = [
        "The old man sees a book.",
        "Le chat dort.",
        "Heute",
        "x",
        "¿Qué?",
        "el perro " * 9,
    ]
    prompts = [encode_prompt(tokenizer, TASK, text) for text in texts]
    limits = {"max_new_tokens": 40}
    together = generate(model, tokenizer, prompts, batch_tokens=10_000, **limits)
    alone = generate(model, tokenizer, prompts, batch_tokens=1, **limits)
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.tokens for r in together] == [r.tokens for r in alone]


@pytest.mark.usefixtures("in_fp32")
def test_an_answer_is_as_sure_by_transformers_as_by_our_decoding(builtin, monkeypatch):
    model, tokenizer = load_weights(builtin), load_tokenizer(builtin)
    prompts = [encode_prompt(tokenizer, TASK, text) for text in ("Le chat dort.", "the old man")]
    limits = {"max_new_tokens": 20, "batch_tokens": 10_000}
    ours = generate(model, tokenizer, prompts, **limits)
    monkeypatch.setattr("common.student.generation.can_share", lambda model: False)
    for one, other in zip(ours, generate(model, tokenizer, prompts, **limits), strict=True):
        assert one.text == other.text
        assert one.least_logprob <= one.mean_logprob < 0
        assert one.least_logprob == pytest.approx(other.least_logprob, abs=1e-3)
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-3)


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("shares", [True, False])
def test_samples_tell_how_often_the_student_says_the_same(builtin, monkeypatch, shares):
    if not shares:
        monkeypatch.setattr("common.student.generation.can_share", lambda model: False)
    student = open_student(builtin, TASK)
    texts = ["Le chat dort.", "the old man", "Heute"]
    greedy = student.answer(texts, max_new_tokens=6)
    sampled = student.answer(texts, max_new_tokens=6, samples=8)
    assert [r.text for r in sampled] == [r.text for r in greedy]
    assert {r.agreement for r in greedy} == {None}
    assert all(0 <= r.agreement <= 1 for r in sampled)
    assert sum(r.agreement for r in sampled) < 3  # an untrained student is not sure
    assert sampled[0].seconds > greedy[0].seconds
    again = student.answer(texts, max_new_tokens=6, samples=8)
    assert [r.agreement for r in again] == [r.agreement for r in sampled]


def test_greedy_decoding_knows_no_penalty(settings, builtin, tmp_path):
    """Some models bring one in generation_config.json, which would keep a student from copying."""
    folder = tmp_path / "student"
    shutil.copytree(find_student(builtin), folder)
    penalty = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 2, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0} | penalty))
    tokenizer = load_tokenizer(builtin)
    prompts = [encode_prompt(tokenizer, TASK, "the old man sees the old man")]
    texts = []
    for own in (builtin, settings(STUDENT__MODEL=str(folder))):
        model = load_weights(own)
        responses = generate(model, tokenizer, prompts, max_new_tokens=30, batch_tokens=999)
        texts.append(responses[0].text)
    assert texts[0] == texts[1]


def test_a_quantised_student_gives_gradients_after_an_evaluation(builtin):
    """Where a CPU has AVX512-BF16, bitsandbytes would repack the weights before the second."""
    model = load_weights(builtin)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    after = model(inputs_embeds=embedded).logits
    torch.testing.assert_close(before, after)
    after.sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0


def test_too_little_memory_halves_the_batch_and_goes_on(builtin, tokenizer, monkeypatch, caplog):
    model = load_weights(builtin)
    prompts = [encode_prompt(tokenizer, TASK, "word " * (i % 5)) for i in range(20)]
    limits = {"max_new_tokens": 5, "batch_tokens": 10_000}
    expected = [r.text for r in generate(model, tokenizer, prompts, **limits)]
    answer, sizes = model.generate, []

    def run_out(input_ids, **arguments):
        sizes.append(len(input_ids))
        if len(input_ids) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return answer(input_ids=input_ids, **arguments)

    monkeypatch.setattr(model, "generate", run_out)
    assert [r.text for r in generate(model, tokenizer, prompts, **limits)] == expected
    assert sizes[:3] == [20, 10, 5]
    assert max(sizes[3:]) <= 6
    assert "too little memory" in caplog.text

    def fail(input_ids, **arguments):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        generate(model, tokenizer, prompts, **limits)


def test_no_more_is_asked_for_than_the_student_has_positions(builtin, tokenizer, caplog):
    model = load_weights(builtin)
    prompts = [encode_prompt(tokenizer, TASK, text) for text in ("one", "two " * 40)]
    limits = {"max_new_tokens": 30, "batch_tokens": 1}
    free = generate(model, tokenizer, prompts, **limits)
    model.config.max_position_embeddings = len(prompts[0]) + 3
    short, none = generate(model, tokenizer, prompts, **limits)
    assert short.tokens == 3
    assert free[0].text.startswith(short.text)
    assert (none.text, none.error) == ("", "too_long")
    assert "1 prompts are too long" in caplog.text


def test_prompts_near_the_last_position_answer_in_a_batch_as_alone(builtin, tokenizer):
    model = load_weights(builtin)
    texts = ["one", "two three", "two four", "one " * 9, "two " * 10]
    prompts = [encode_prompt(tokenizer, TASK, text) for text in texts]
    model.config.max_position_embeddings = max(map(len, prompts)) + 2
    limits = {"max_new_tokens": 24}
    together = generate(model, tokenizer, prompts, batch_tokens=10_000, **limits)
    alone = generate(model, tokenizer, prompts, batch_tokens=1, **limits)
    assert [r.text for r in together] == [r.text for r in alone]


def test_a_setting_that_is_added_to_the_evaluation_is_no_argument_of_the_student(builtin):
    class More(EvaluateSettings):
        something_new: int = 7

    limits = More(max_new_tokens=5)
    student = open_student(builtin.model_copy(update={"evaluate": limits}), TASK)
    assert student.answer(["one", "two"])[1].tokens <= 5


@pytest.mark.parametrize("template", [True, False])
def test_the_few_shot_prompt_has_the_examples_as_answered_turns(tokenizer, template):
    if not template:
        tokenizer.chat_template = None
    task = TASK.model_copy(update={"few_shot": [FewShot(text="in", label="out")]})
    text = tokenizer.decode(encode_few_shot_prompt(tokenizer, task, "a text"))
    zero = tokenizer.decode(encode_prompt(tokenizer, task, "a text"))
    assert text.endswith(zero)
    assert text.index("in") < text.index("out") < text.index("a text")
    assert encode_few_shot_prompt(tokenizer, TASK, "x") == encode_prompt(tokenizer, TASK, "x")


def test_batches_hold_every_row_once_the_longest_first():
    lengths = [3, 50, 10, 10, 200, 7]
    order, batches = sort_by_length(lengths), []
    while order:
        batches.append(take_batch(order, lengths, batch_tokens=100))
        order = order[len(batches[-1]) :]
    assert batches[0] == [4]
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 100 for b in batches)


def test_a_large_batch_has_rows_of_similar_length():
    lengths = [100] * 50 + [30] * 40
    order = sort_by_length(lengths)
    assert len(take_batch(order, lengths, batch_tokens=16_384)) == 50
    assert len(take_batch(order[40:], lengths, batch_tokens=16_384)) == 32  # too few to be split
    assert len(take_batch(order[50:], lengths, batch_tokens=16_384)) == 40


@pytest.mark.parametrize("name", ["./no-such-folder", "no/such-model"])
def test_a_student_that_is_not_there_is_named(settings, name):
    with pytest.raises(InputError, match=r"DISTILL_STUDENT__MODEL='.*no"):
        load_tokenizer(settings(STUDENT__MODEL=name))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", "{", "JSON"),
        ("tokenizer.json", '{"version": "1.0"}', "cannot be loaded"),
        ("model.safetensors", "junk", "cannot be loaded"),
        ("layers", 6, "do not fit its config.json"),
    ],
)
def test_a_damaged_student_is_told_in_one_line(settings, builtin, tmp_path, name, content, told):
    folder = tmp_path / "student"
    shutil.copytree(find_student(builtin), folder)
    if name == "layers":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": content}))
    else:
        (folder / name).write_text(content)
    own = settings(STUDENT__MODEL=str(folder))
    with pytest.raises(InputError, match=told) as raised:
        load_tokenizer(own)
        load_weights(own)
    assert "\n" not in str(raised.value)


def test_a_folder_without_weights_is_found_before_anything_is_paid_for(settings, builtin, tmp_path):
    shutil.copytree(find_student(builtin), tmp_path / "student")
    (tmp_path / "student/model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        check_student(settings(STUDENT__MODEL=str(tmp_path / "student")), TASK)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 4194304 bytes. Error code 12 (no memory)"
            ),
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4194304 bytes",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."), "CUDA out of memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_could_not_be_allocated_is_told(error, reason):
    with pytest.raises(SettingsError) as raised, explaining_memory("lower something"):
        raise error
    assert str(raised.value) == f"the memory does not suffice ({reason}); lower something"
