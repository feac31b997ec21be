import shutil

import pytest
import torch
from safetensors.torch import load_file

from commands import run_job
from common.errors import InputError
from common.manifest import read_manifest, write_manifest
from common.records import LabelRow, hash_text, make_label_table
from common.storage import RunStorage
from common.student import find_student, load_tokenizer
from common.tasks import load_task
from common.training import make_trainer
from jobs.train import encode_labels, main, read_labels


def write_labels(settings, pairs, status="ok"):
    storage = RunStorage(settings)
    rows = [LabelRow(hash_text(text), text, status, label) for text, label in pairs]
    storage.write_table("labels/part-00000.parquet", make_label_table(rows))
    write_manifest(
        storage, "labels", {"n": len(rows)}, files=["labels/part-00000.parquet"], counts={}
    )
    return storage


PAIRS = [(f"the {i} dog sleep", f"The {i} dogs sleep.") for i in range(12)]


@pytest.fixture
def tiny(settings):
    return settings(STUDENT__MODEL="builtin", TRAIN__EPOCHS="1", TRAIN__BATCH_SIZE="4")


def test_an_adapter_is_trained_and_a_rerun_leaves_it(tiny, caplog):
    storage = write_labels(tiny, PAIRS)
    main(tiny)
    manifest = read_manifest(storage, "adapter")
    assert manifest["counts"] == {"labels": 12, "dropped_too_long": 0}
    assert manifest["summary"]["updates"] == 3
    assert {"adapter/adapter_model.safetensors", "adapter/tokenizer.json"} <= set(manifest["files"])
    weights = load_file(storage.path("adapter/adapter_model.safetensors"))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    learned = [tensor.abs().max() for name, tensor in weights.items() if "lora_B" in name]
    assert all(value > 0 for value in learned)
    finished_at = manifest["finished_at"]
    caplog.set_level("INFO")
    main(tiny)
    assert "already done" in caplog.text
    assert read_manifest(storage, "adapter")["finished_at"] == finished_at


def test_the_same_seed_gives_the_same_adapter_and_another_setting_is_an_error(tiny, settings):
    storage = write_labels(tiny, PAIRS)
    main(tiny)
    first = storage.read_bytes("adapter/adapter_model.safetensors")
    with pytest.raises(InputError, match=r"train\.seed was 0 and is 1"):
        main(settings(TRAIN__SEED="1"))
    shutil.rmtree(storage.path("adapter"))
    main(tiny)  # torch's and Python's random states are other ones now
    assert storage.read_bytes("adapter/adapter_model.safetensors") == first


def test_lora_weights_stay_in_full_precision_and_nothing_else_is_trained(tiny):
    tokenizer = load_tokenizer(tiny)
    dataset, _ = encode_labels(tiny, load_task("gec"), tokenizer, PAIRS)
    trainer = make_trainer(tiny, tokenizer, dataset, "trainer")
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    adapted = sum("lora_A" in name for name in trained)
    assert adapted == 4 * 7  # layers by linear modules, each wrapped once


def test_over_long_rows_are_dropped_and_never_cut(tiny):
    tokenizer = load_tokenizer(tiny)
    long = ("word " * 600, "label")
    dataset, dropped = encode_labels(tiny, load_task("gec"), tokenizer, [*PAIRS, long])
    assert (len(dataset), dropped) == (12, 1)
    assert all(row["input_ids"][-1] == tokenizer.eos_token_id for row in dataset)
    with pytest.raises(InputError, match="DISTILL_STUDENT__MAX_TOKENS=512"):
        encode_labels(tiny, load_task("gec"), tokenizer, [long])


def test_the_batch_keeps_prompts_and_padding_out_of_the_loss(tiny):
    tokenizer = load_tokenizer(tiny)
    dataset, _ = encode_labels(
        tiny, load_task("gec"), tokenizer, [("a", "b"), ("a " * 9, "b " * 9)]
    )
    trainer = make_trainer(tiny, tokenizer, dataset, "trainer")
    batch = next(iter(trainer.get_train_dataloader()))
    texts = [tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert sorted(texts) == ["b " * 9 + "</s>", "b</s>"]
    assert batch["attention_mask"].sum() == sum(len(row["input_ids"]) for row in dataset)


def test_only_ok_labels_are_learned(tiny):
    storage = write_labels(tiny, PAIRS, status="filtered")
    with pytest.raises(InputError, match="none of its 12 rows has status ok"):
        read_labels(storage, ["labels/part-00000.parquet"])


def test_unfinished_labels_are_bad_input(tmp_path):
    done = run_job("train", tmp_path, STUDENT__MODEL="builtin")
    assert done.returncode == 3
    assert "run python -m jobs.label first" in done.stderr.splitlines()[-1]


def test_a_student_in_a_folder_without_a_chat_template_learns_too(tiny, settings, tmp_path):
    shutil.copytree(find_student(tiny), tmp_path / "student")
    (tmp_path / "student/chat_template.jinja").unlink()
    own = settings(STUDENT__MODEL=str(tmp_path / "student"), TRAIN__LEARNING_RATE="1e-3")
    storage = write_labels(own, PAIRS)
    main(own)
    history = storage.read_json("adapter/history.json")
    assert read_manifest(storage, "adapter")["settings"]["train"]["preset"] == "default"
    assert history[-1]["train_loss"] > 0
