"""Merged students, GGUF files, and the prompt that servers get."""

import json
import re
from itertools import product
from pathlib import Path

import jinja2
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from common.data.testset import load_test_rows
from common.errors import InputError
from common.run.manifest import read_manifest
from common.run.steps import GGUF, MERGED
from common.student.frame import find_frame
from common.student.generation import TransformersRuntime
from common.student.prompt import encode_prompt, load_tokenizer
from common.student.source import find_student
from common.tasks.task import StudentPrompt, Task, load_task
from common.training.gguf_file import F16, Q8_0, write_gguf
from common.training.gguf_vocabulary import read_vocabulary
from common.training.modelfile import render_modelfile
from jobs.train import main
from support.small_students import KINDS, make_student, make_tokenizer
from test_train import PAIRS, write_labels

TEXTS = ["She go to school.", "Two  words,\n\nand 1,234 more", '  é “x” 😀 {{ y }} """ \'{% z %}  ']
PROMPTS = [
    "Correct the grammar:\n{text}",
    "{text}",
    '{{ "a" }} {% raw %} \\n \\ é 😀 """" {"x": {text}} """ {#\n{',
]


@pytest.fixture
def local(settings):
    return settings(
        DATA__SOURCE="builtin",
        DATA__TEST_LIMIT=40,
        STUDENT__MODEL="builtin",
        TRAIN__EPOCHS=2,
        TRAIN__BATCH_SIZE=4,
        TRAIN__HELD_OUT=0,
        TRAIN__EXPORT="gguf",
        EVALUATE__MAX_NEW_TOKENS=24,
    )


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("common.student.gguf.HF_HOME", str(tmp_path / "hf"))


def read_file(path):
    """The weights of a GGUF file in fp32 and their types, and its other fields."""
    reader = GGUFReader(path)
    weights = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    return weights, kinds, {name: field.contents() for name, field in reader.fields.items()}


def render_jinja(template, text):
    """As servers do."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "an earlier text"},
        {"role": "assistant", "content": "an earlier answer"},
        {"role": "user", "content": text},
    ]
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True)


def render_go(modelfile, text):
    """As Ollama does, for the few actions of ours."""
    template = re.search(r'TEMPLATE """(.*?)"""$', modelfile, re.DOTALL | re.MULTILINE)[1]
    start, _, rest = template.partition("{{ $last = .Content }}{{ end }}{{ end }}")
    assert start.startswith('{{ $last := "" }}{{ range .Messages }}')
    pieces = re.split(r"\{\{ (.*?) \}\}", rest, flags=re.DOTALL)
    assert not any("{{" in piece for piece in pieces[::2])
    pieces[1::2] = [text if piece == "$last" else json.loads(piece) for piece in pieces[1::2]]
    return "".join(pieces)


def answer(folder, tokenizer, prompts):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    responses = TransformersRuntime(model, tokenizer).generate(prompts, 24, 4096)
    return [response.text for response in responses]


def test_a_gguf_student_has_the_merged_one_s_weights_and_answers(local, settings, in_fp32):
    storage = write_labels(local, PAIRS)
    main(local)
    manifest = read_manifest(storage, GGUF)
    assert set(manifest.files) == {
        f"gguf/{name}"
        for name in ("student-f16.gguf", "student-q8_0.gguf", "task.jinja", "Modelfile")
    }
    assert read_manifest(storage, MERGED) is None
    main(settings(TRAIN__EXPORT="merged,gguf"))  # later, on the adapter that is there
    assert read_manifest(storage, GGUF).finished_at == manifest.finished_at
    tokenizer, task = load_tokenizer(local), load_task("gec")
    texts = [row.text for row in load_test_rows(local, task).rows]
    prompts = [encode_prompt(tokenizer, task, text) for text in texts]
    merged = answer(storage.path("merged"), tokenizer, prompts)
    assert len(set(merged)) > 20
    weights = load_file(storage.path("merged/model.safetensors"))
    for kind, error in (("f16", 2**-11), ("q8_0", 1 / 127)):
        file = storage.path(f"gguf/student-{kind}.gguf")
        unpacked = find_student(settings(STUDENT__MODEL=file))
        for name, value in load_file(f"{unpacked}/model.safetensors").items():
            whole = weights[name].float()
            limit = error * whole.abs().amax(-1, keepdim=True) + 1e-6
            assert ((value.float() - whole).abs() <= limit).all(), name
        own = load_tokenizer(settings(STUDENT__MODEL=file))
        assert [encode_prompt(own, task, text) for text in texts] == prompts
        equal = sum(a == b for a, b in zip(answer(unpacked, own, prompts), merged, strict=True))
        assert equal == len(merged) if kind == "f16" else equal >= 0.9 * len(merged)


def test_what_is_exported_beside_an_adapter_has_its_template(local, settings):
    storage = write_labels(local, PAIRS)
    main(settings(TRAIN__EXPORT="", TRAIN__MERGE="true"))
    assert {"adapter/task.jinja"} < set(storage.list_files("adapter"))
    assert {"merged/task.jinja"} < set(storage.list_files("merged"))
    merged = read_manifest(storage, MERGED)
    main(settings(TRAIN__EXPORT="merged", TRAIN__MERGE="false"))  # the same, by its other name
    assert read_manifest(storage, MERGED).finished_at == merged.finished_at
    main(settings(TRAIN__EXPORT="gguf"))
    modelfile = storage.read_bytes("gguf/Modelfile").decode()
    assert modelfile.startswith("FROM ./student-q8_0.gguf\n")
    for line in ("temperature 0", "repeat_penalty 1", "num_predict 24", 'stop "</s>"'):
        assert f"PARAMETER {line}\n" in modelfile
    tokenizer, task = load_tokenizer(local), load_task("gec")
    for text in TEXTS:
        expected = encode_prompt(tokenizer, task, text)
        for name in ("adapter", "merged", "gguf"):
            prompt = render_jinja(storage.read_bytes(f"{name}/task.jinja").decode(), text)
            assert tokenizer(prompt, add_special_tokens=False).input_ids == expected
        prompt = render_go(modelfile, text)
        assert tokenizer(prompt, add_special_tokens=False).input_ids == expected


@pytest.mark.parametrize("chat", ["none", "no bos", "bos", "trim"])
@pytest.mark.parametrize("kind", KINDS)
def test_servers_templates_give_the_prompt_s_tokens(kind, chat):
    start = "{{ bos_token }}" if chat == "bos" else ""
    content = "message['content']" + ("|trim" if chat == "trim" else "")
    template = (
        f"{start}{{% for message in messages %}}{{{{ '<|' + message['role'] + '|>\\n' }}}}"
        f"{{{{ {content} + eos_token + '\\n' }}}}{{% endfor %}}{{{{ '<|assistant|>\\n' }}}}"
    )
    tokenizer = make_tokenizer(kind, None if chat == "none" else template)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    for prompt, text in product(PROMPTS, TEXTS):
        if prompt == "{text}":  # some tokenizers put a space before a text without one
            text = text.lstrip()
        task = Task(name="x", student=StudentPrompt(prompt=prompt))
        expected = encode_prompt(tokenizer, task, text)
        frame = find_frame(tokenizer, task)
        rendered = render_jinja(frame.to_jinja(), text)
        assert tokenizer(rendered, add_special_tokens=False).input_ids == expected
        frame = find_frame(tokenizer, task, vocabulary.encode)
        assert vocabulary.encode(render_jinja(frame.to_jinja(), text)) == expected
        if chat != "trim":
            modelfile = render_modelfile("x.gguf", frame, ["</s>"], 5)
            assert vocabulary.encode(render_go(modelfile, text)) == expected


def test_a_chat_template_that_changes_the_text_has_no_frame(caplog):
    tokenizer = make_tokenizer("gpt-2", "{{ messages[-1]['content'] | upper }}")
    assert find_frame(tokenizer, load_task("gec")) is None


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_file_says_what_llama_cpp_needs(tmp_path, is_tied):
    tokenizer = make_student(tmp_path / "student", tie_word_embeddings=is_tied)
    write_gguf(tmp_path / "student", tmp_path / "x.gguf", tokenizer, "a name", F16)
    weights, kinds, fields = read_file(tmp_path / "x.gguf")
    assert ("output.weight" in weights) == (not is_tied)
    assert {kinds["blk.0.attn_q.weight"], kinds["blk.1.attn_norm.weight"]} == {"F16", "F32"}
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{len(tokenizer) + 3}]"
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert not fields["tokenizer.ggml.add_bos_token"]  # the templates write it
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["llama.attention.head_count_kv"] == 2
    write_gguf(tmp_path / "student", tmp_path / "y.gguf", tokenizer, "a name", Q8_0)
    rounded, kinds, _ = read_file(tmp_path / "y.gguf")
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    for name, value in weights.items():
        blocks = value.reshape(-1, 32 if value.ndim > 1 else 1)
        limit = np.abs(blocks).max(1, keepdims=True) / 127 * 0.6 + 1e-6
        assert (np.abs(rounded[name].reshape(blocks.shape) - blocks) <= limit).all(), name


def test_the_frequencies_of_llama_3_are_those_of_transformers(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    tokenizer = make_student(tmp_path / "student", rope_parameters=rope)
    write_gguf(tmp_path / "student", tmp_path / "x.gguf", tokenizer, "a name", F16)
    factors = read_file(tmp_path / "x.gguf")[0]["rope_freqs.weight"]
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500_000.0 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / factors, expected.numpy(), rtol=1e-5)


def edit(folder: Path, name: str, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


REFUSALS = {
    "it is a qwen2": ("config.json", {"model_type": "qwen2"}),
    "attention_bias": ("config.json", {"attention_bias": True}),
    "its activation is gelu": ("config.json", {"hidden_act": "gelu"}),
    "rope_type is yarn": (
        "config.json",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "its pre-tokenizer is none of gpt-2": ("tokenizer.json", {"pre_tokenizer": None}),
    "its normalizer, NFC": ("tokenizer.json", {"normalizer": {"type": "NFC"}}),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_cannot_be_written_as_gguf_is_said_before_the_training(
    reason, local, settings, tmp_path
):
    make_student(tmp_path / "student")
    name, values = REFUSALS[reason]
    edit(tmp_path / "student", name, **values)
    own = settings(STUDENT__MODEL=str(tmp_path / "student"))
    storage = write_labels(own, PAIRS)
    with pytest.raises(InputError, match=rf"EXPORT=gguf: .*{reason}.*convert_hf_to_gguf\.py"):
        main(own)
    assert not storage.list_files("adapter") and not storage.list_files("checkpoints")


def test_a_mistral_ends_at_its_window(tmp_path):
    tokenizer = make_student(tmp_path / "student")
    old = LlamaConfig.from_pretrained(tmp_path / "student").to_dict()
    kept = {k: v for k, v in old.items() if k not in ("model_type", "architectures")}
    MistralConfig(**kept | {"sliding_window": 128}).save_pretrained(tmp_path / "student")
    write_gguf(tmp_path / "student", tmp_path / "x.gguf", tokenizer, "a name", F16)
    _, _, fields = read_file(tmp_path / "x.gguf")
    assert (fields["general.architecture"], fields["llama.context_length"]) == ("llama", 128)
