"""Students as people have them: special tokens in data, dates, pickles, code of their own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import InputError, SettingsError
from common.student.prompt import (
    TODAY,
    encode_example,
    encode_few_shot_prompt,
    encode_prompt,
    fingerprint_student,
    load_tokenizer,
)
from common.student.source import check_source, find_student, make_options
from common.student.weights import load_weights
from common.tasks.task import FewShot, StudentPrompt, Task

TASK = Task(
    name="copy",
    student=StudentPrompt(prompt="Say:\n{text}"),
    few_shot=[FewShot(text="a </s>", label="<|user|>")],
)
SPECIAL = "<|user|>"


@pytest.fixture
def folder(settings, tmp_path):
    """A student's folder, to be changed."""
    target = tmp_path / "student"
    shutil.copytree(find_student(settings(STUDENT__MODEL="builtin")), target)
    return target


@pytest.fixture
def own(settings, folder):
    """Settings with that folder as the student."""
    return settings(STUDENT__MODEL=str(folder))


def edit(folder: Path, name: str, **values):
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


def count_special(tokenizer, ids):
    return sum(id in tokenizer.all_special_ids for id in ids)


@pytest.mark.parametrize("has_template", [True, False])
@pytest.mark.parametrize("text", ["a </s> b", f"{SPECIAL}x", "</s>", "<</s>/s>", f"b{SPECIAL}"])
def test_a_special_tokens_spelling_in_data_is_text(own, has_template, text):
    tokenizer = load_tokenizer(own)
    if not has_template:
        tokenizer.chat_template = None
    plain = encode_example(tokenizer, TASK, "x", "y")
    row = encode_example(tokenizer, TASK, text, text)
    special = count_special(tokenizer, plain["input_ids"])
    assert count_special(tokenizer, row["input_ids"]) == special
    learned = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learned, skip_special_tokens=True) == text
    assert text in tokenizer.decode(row["input_ids"], skip_special_tokens=True)
    shots = encode_few_shot_prompt(tokenizer, TASK, text)
    before = encode_few_shot_prompt(
        tokenizer, TASK.model_copy(update={"few_shot": [FewShot(text="a", label="b")]}), "x"
    )
    assert count_special(tokenizer, shots) == count_special(tokenizer, before)


def test_the_braces_and_quotes_of_a_prompt_are_no_template(own):
    tokenizer = load_tokenizer(own)
    tokenizer.chat_template = None
    prompt = 'Say "{{ x }}" {%\\n\n{text}\n{text}'
    task = Task(name="copy", student=StudentPrompt(prompt=prompt))
    decoded = tokenizer.decode(encode_prompt(tokenizer, task, "{{ y }}"))
    assert decoded.strip() == prompt.replace("{text}", "{{ y }}")


@pytest.mark.parametrize(
    "call", ["strftime_now('%d %b %Y')", 'strftime_now( "%d %b %Y" )', "strftime_now(format)"]
)
def test_a_chat_template_with_the_date_is_the_same_every_day(own, folder, call):
    template = folder / "chat_template.jinja"
    before = fingerprint_student(own, TASK, load_tokenizer(own))
    template.write_text(
        "{%- set format = '%Y' -%}Today: {{ " + call + " }}\n" + template.read_text()
    )
    tokenizer = load_tokenizer(own)
    told = tokenizer.decode(encode_prompt(tokenizer, TASK, "a"))
    assert f"{TODAY:%Y}" in told
    now = fingerprint_student(own, TASK, tokenizer)
    assert now["student.frame"].endswith(", dated 2026-01-01")
    assert now["student.frame"] != before["student.frame"]
    tokenizer.save_pretrained(folder / "saved")  # as an adapter's, which a server may load
    assert f"{TODAY:%Y}" in (folder / "saved/chat_template.jinja").read_text()


def test_damaged_weights_are_not_taken_for_pickles(own, folder):
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError) as raised:
        load_weights(own)
    assert "PICKLE" not in str(raised.value)


def test_a_padding_token_without_an_embedding_is_replaced(own, folder):
    tokenizer = load_tokenizer(own)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    again = load_tokenizer(own)
    assert again.pad_token_id < size


def test_other_tokens_without_an_embedding_are_refused(own, folder):
    tokenizer = load_tokenizer(own)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens(["zzzz", "yyyy"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=f"has {len(tokenizer)} tokens, and its embedding {size}"):
        load_tokenizer(own)


def test_a_chat_template_that_refuses_is_told(own, folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only with tools') }}")
    with pytest.raises(InputError, match="only with tools"):
        load_tokenizer(own)


def test_a_pickle_is_loaded_only_if_it_is_allowed(own, folder, settings):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*DISTILL_STUDENT__ALLOW_PICKLE"):
        check_source(own)
    with pytest.raises(InputError, match="DISTILL_STUDENT__ALLOW_PICKLE") as raised:
        load_weights(own)
    assert str(raised.value).count("only safetensors are loaded") == 1
    allowed = settings(STUDENT__MODEL=str(folder), STUDENT__ALLOW_PICKLE=True)
    check_source(allowed)
    assert load_weights(allowed)


MODEL_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open({mark!r}, "w").close()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_student_runs_only_if_a_setting_names_it(own, folder, settings, tmp_path):
    mark = tmp_path / "was-run"
    (folder / "own.py").write_text(MODEL_CODE.format(mark=str(mark)))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit(folder, "config.json", model_type="own", auto_map=classes)
    for load in (check_source, load_tokenizer, load_weights):
        with pytest.raises(InputError, match=r"brings its own code.*DISTILL_STUDENT__TRUST_REMOTE"):
            load(own)
    assert not mark.exists()
    other = settings(STUDENT__TRUST_REMOTE_CODE="someone/else@123")
    with pytest.raises(SettingsError, match="is another student; it should be the folder"):
        check_source(other)
    named = settings(STUDENT__TRUST_REMOTE_CODE=str(folder))
    check_source(named)
    assert load_weights(named)
    assert mark.exists()


def test_code_of_the_hub_is_named_with_its_revision(settings):
    hub = settings(STUDENT__MODEL="a/b", STUDENT__TRUST_REMOTE_CODE="a/b")
    with pytest.raises(SettingsError, match=r"'a/b@<commit>'.*REVISION.*not set"):
        make_options(hub)
    named = settings(STUDENT__REVISION="12ab", STUDENT__TRUST_REMOTE_CODE="a/b@12ab")
    assert make_options(named) == {"revision": "12ab", "trust_remote_code": True}


CHANGES = [{"TRAIN__MERGE": True}, {"TRAIN__EXPORT": "gguf"}, {"STUDENT__QUANTIZATION": "none"}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_quantised_student_cannot_be_merged_or_unquantised(own, folder, settings, change):
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit(folder, "config.json", quantization_config=quantised)
    check_source(own)
    (name,) = change
    with pytest.raises(
        InputError, match=rf"already quantised \(bitsandbytes\), and DISTILL_{name}"
    ):
        check_source(settings(STUDENT__MODEL=str(folder), **change))


@pytest.mark.parametrize("content", [b"GGUF", b"no such thing", None])
def test_a_gguf_file_that_is_none_is_told(settings, tmp_path, content):
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    own = settings(STUDENT__MODEL=str(path))
    with pytest.raises(InputError, match=r"DISTILL_STUDENT__MODEL=.*x\.gguf' cannot be loaded"):
        load_tokenizer(own)
