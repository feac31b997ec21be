import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from common.errors import InputError, SettingsError, StoppedError
from common.records import LabelRow, hash_text, make_label_table
from common.run.manifest import read_manifest, write_manifest
from common.run.run import open_run
from common.run.steps import ADAPTER, LABELS, MERGED
from common.run.storage import RunStorage
from common.sections import PRESETS
from common.student.adapter import HISTORY_FILE
from common.student.generation import TransformersRuntime
from common.student.prompt import encode_example, encode_prompt, load_tokenizer
from common.student.source import find_student
from common.student.weights import load_weights
from common.tasks.task import load_task
from common.training.agreement import make_measure
from common.training.checkpoints import Checkpoints
from common.training.lora import add_adapter, make_lora
from common.training.objectives.supervised import Supervised
from common.training.schedule import Schedule
from common.training.train_set import iterate_labels, load_train_set
from common.training.trainer import LabelTrainer, check_training, make_trainer
from jobs.train import main
from support.commands import run_job, start_job


def make_rows(pairs, status="ok"):
    return [LabelRow(hash_text(text), text, status, label) for text, label in pairs]


def write_labels(settings, pairs, status="ok"):
    storage = RunStorage(settings)
    rows = make_rows(pairs, status)
    storage.write_table("labels/part-00000.parquet", make_label_table(rows))
    write_manifest(
        storage, LABELS, {"n": len(rows)}, files=["labels/part-00000.parquet"], counts={}
    )
    return storage


PAIRS = [(f"the {i} dog sleep", f"The {i} dogs sleep.") for i in range(24)]


@pytest.fixture
def tiny(settings):
    return settings(
        STUDENT__MODEL="builtin",
        TRAIN__EPOCHS=2,
        TRAIN__BATCH_SIZE=4,
        TRAIN__EVALUATIONS=3,
        EVALUATE__BATCH_TOKENS=4096,
    )


def make(settings, pairs=PAIRS):
    """A trainer on pairs, and its tokenizer."""
    tokenizer = load_tokenizer(settings)
    objective = Supervised(load_task("gec"), tokenizer)
    dataset = Dataset.from_list([objective.encode(row) for row in make_rows(pairs)])
    return make_trainer(settings, tokenizer, objective, dataset, Path("trainer")), tokenizer


def read_adapter(storage):
    return load_file(storage.path("adapter/adapter_model.safetensors"))


def test_an_adapter_is_trained_and_a_rerun_leaves_it(tiny, caplog):
    storage = write_labels(tiny, PAIRS)
    main(tiny)
    manifest = read_manifest(storage, ADAPTER)
    assert manifest.counts == {"labels": 22, "held_out": 2, "dropped_too_long": 0}
    assert manifest.summary["updates"] == 12
    assert {"adapter/adapter_model.safetensors", "adapter/tokenizer.json"} <= set(manifest.files)
    weights = read_adapter(storage)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    learned = [tensor.abs().max() for name, tensor in weights.items() if "lora_B" in name]
    assert all(value > 0 for value in learned)
    history = [json.loads(line) for line in storage.read_bytes(HISTORY_FILE).splitlines()]
    assert [entry["step"] for entry in history if "eval_agreement" in entry] == [4, 8, 12]
    assert all(entry["eval_loss"] > 0 for entry in history if "eval_agreement" in entry)
    (entry,) = [entry for entry in history if "loss" in entry]
    assert {"learning_rate", "grad_norm", "tokens_per_second"} <= entry.keys()
    assert "# gec: builtin, distilled from" in storage.read_bytes("adapter/README.md").decode()
    assert storage.list_files("checkpoints") == []
    finished_at = manifest.finished_at
    caplog.set_level("INFO")
    main(tiny)
    assert "already done" in caplog.text
    assert read_manifest(storage, ADAPTER).finished_at == finished_at


def test_the_same_seed_gives_the_same_adapter_and_another_setting_is_an_error(tiny, settings):
    storage = write_labels(tiny, PAIRS)
    main(tiny)
    first = storage.read_bytes("adapter/adapter_model.safetensors")
    with pytest.raises(InputError, match=r"train\.seed was 0 and is 1"):
        main(settings(TRAIN__SEED="1"))
    shutil.rmtree(storage.path("adapter"))
    main(settings(TRAIN__SEED="0", TRAIN__GRADIENT_CHECKPOINTING="true"))  # torch's state differs
    assert storage.read_bytes("adapter/adapter_model.safetensors") == first


class Crash(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("update", [1, 4, 5, 12])
def test_a_training_that_is_cut_off_goes_on_to_the_same_weights(
    tiny, settings, tmp_path, monkeypatch, update
):
    own = settings(TRAIN__CHECKPOINT_SECONDS=1e-9)  # after each update
    main(settings(RUN="whole") if write_labels(settings(RUN="whole"), PAIRS) else own)
    whole = read_adapter(RunStorage(settings(RUN="whole")))
    cut = settings(RUN="cut")
    storage = write_labels(cut, PAIRS)
    compute_loss, calls = LabelTrainer.compute_loss, []

    def crash(self, *arguments, **values):
        calls.append(self.state.global_step)
        if len(calls) == update:
            raise Crash
        return compute_loss(self, *arguments, **values)

    monkeypatch.setattr(LabelTrainer, "compute_loss", crash)
    with pytest.raises(Crash):
        main(cut)
    assert not storage.exists("adapter/_manifest.json")
    torch.rand(7)  # the new process has other random numbers
    main(cut)
    assert calls.count(update - 1) == 2
    assert len(calls) == 13  # no other update was made twice
    again = read_adapter(storage)
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_killed_training_goes_on_from_storage_on_another_machine(tmp_path, bucket, settings):
    """SIGTERM first, then kill -9, each with an empty disk after it."""
    variables = {
        "STUDENT__MODEL": "builtin",
        "TRAIN__EPOCHS": 12,
        "TRAIN__BATCH_SIZE": 4,
        "TRAIN__CHECKPOINT_SECONDS": 0.2,
        "TRAIN__PATIENCE": 0,
    }
    roots = {"whole": tmp_path / "runs", "cut": f"{bucket}/runs"}
    storages = {
        run: write_labels(settings(RUN=run, STORAGE__ROOT=root, **variables), PAIRS)
        for run, root in roots.items()
    }
    done = run_job("train", tmp_path, RUN="whole", STORAGE__ROOT=roots["whole"], **variables)
    assert done.returncode == 0, done.stderr
    storage = storages["cut"]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        before = find_latest(storage)
        with start_job(
            "train", tmp_path, RUN="cut", STORAGE__ROOT=roots["cut"], **variables
        ) as job:
            while find_latest(storage) <= before:
                assert job.poll() is None, job.communicate()
                time.sleep(0.05)
            job.send_signal(number)
            _, errors = job.communicate(timeout=60)
            assert job.returncode == code, errors
            assert "Traceback" not in errors
    last = run_job("train", tmp_path, RUN="cut", STORAGE__ROOT=roots["cut"], **variables)
    assert last.returncode == 0, last.stderr
    assert "resuming after update" in last.stderr
    name = "adapter/adapter_model.safetensors"
    assert storage.read_bytes(name) == storages["whole"].read_bytes(name)


def find_latest(storage):
    return max(Checkpoints(storage, {}).list_updates(), default=0)


def test_a_half_written_checkpoint_does_not_count(tiny):
    checkpoints = Checkpoints(RunStorage(tiny), {"a": 1})
    folder = Path("local")
    folder.mkdir()
    (folder / "weights").write_text("1")
    checkpoints.save(folder, 5, 5)
    RunStorage(tiny).write_bytes("checkpoints/00000009/weights", b"half")
    assert checkpoints.list_updates() == [5]
    checkpoints.save(folder, 10, 5)
    checkpoints.save(folder, 15, 10)
    assert checkpoints.list_updates() == [10, 15]
    with pytest.raises(InputError, match=r"checkpoints was made from something else: a was 1"):
        Checkpoints(RunStorage(tiny), {"a": 2}).load(15, Path("other"))
    checkpoints.remove_all()
    assert RunStorage(tiny).list_files("checkpoints") == []


def test_lora_weights_stay_in_full_precision_and_nothing_else_is_trained(tiny):
    trainer, _ = make(tiny)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    adapted = sum("lora_A" in name for name in trained)
    assert adapted == 4 * 7  # layers by linear modules, each wrapped once


def test_over_long_rows_are_dropped_and_never_cut(tiny):
    long = [(f"{i} " + "word " * 600, "label") for i in range(30)]
    storage = write_labels(tiny, [*PAIRS, *long])
    main(tiny)  # none of them is held out either
    counts = read_manifest(storage, ADAPTER).counts
    assert counts == {"labels": 22, "held_out": 2, "dropped_too_long": 30}
    tokenizer = load_tokenizer(tiny)
    objective, files = Supervised(load_task("gec"), tokenizer), ["labels/part-00000.parquet"]
    found = load_train_set(tiny, storage, files, objective)
    assert all(row["input_ids"][-1] == tokenizer.eos_token_id for row in found.labels)
    write_labels(tiny, long)
    with pytest.raises(InputError, match="DISTILL_STUDENT__MAX_TOKENS=512"):
        load_train_set(tiny, storage, files, objective)


def test_the_batch_keeps_prompts_and_padding_out_of_the_loss(tiny):
    trainer, tokenizer = make(tiny, [("a", "b"), ("a " * 9, "b " * 9)])
    batch = next(iter(trainer.get_train_dataloader()))
    texts = tokenizer.decode(batch["labels"]).split("</s>")
    assert sorted(texts) == ["", "b", "b " * 9]


@pytest.mark.usefixtures("in_fp32")
def test_the_loss_is_that_of_a_model_that_is_given_the_labels(tiny):
    """As transformers computes it, with all logits, and one row at a time."""
    trainer, _ = make(tiny, [("a", "b c d"), ("a " * 9, "b " * 9), ("Où est", "Où est-il ?")])
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
        total = count = 0
        for row in trainer.train_dataset:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            learned = int((labels != -100).sum())
            total += trainer.model(input_ids=ids, labels=labels).loss * learned
            count += learned
    torch.testing.assert_close(loss, total / count)


def test_a_token_counts_the_same_in_every_update(tiny):
    """Whether the labels of its update are long or short."""
    trainer, _ = make(tiny, [("a", "b"), ("a " * 9, "b " * 9)])
    trainer.model.eval()
    rows = list(trainer.train_dataset)
    counts = [sum(token != -100 for token in row["labels"]) for row in rows]
    assert counts[0] < counts[1]
    for row, count in zip(rows, counts, strict=True):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, trainer.data_collator([row]))
            mean = trainer.model(input_ids=ids, labels=labels).loss
        torch.testing.assert_close(loss, mean * count / (sum(counts) / 2))


def give_measures(monkeypatch, *agreements, error=0.05):
    """Lets evaluations, in their order, find these; gives the updates that were measured."""
    measured = []

    def make(*arguments):
        def measure(model):
            measured.append(len(measured))
            agreement = agreements[len(measured) - 1]
            return {"agreement": agreement, "agreement_error": error, "loss": 1.0}

        return measure

    monkeypatch.setattr("jobs.train.make_measure", make)
    return measured


def test_the_latest_checkpoint_that_is_as_good_as_the_best_is_chosen(tiny, monkeypatch):
    give_measures(monkeypatch, 0.62, 0.6, 0.5)
    storage = write_labels(tiny, PAIRS)
    saved = {}
    on_save = Schedule.on_save

    def note(self, args, state, control, **values):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        saved[state.global_step] = load_file(folder / "adapter_model.safetensors")
        on_save(self, args, state, control, **values)

    monkeypatch.setattr(Schedule, "on_save", note)
    main(tiny)
    summary = read_manifest(storage, ADAPTER).summary
    assert (summary["best_update"], summary["agreement"]) == (8, 0.6)
    weights = read_adapter(storage)
    assert all(torch.equal(weights[name], saved[8][name]) for name in weights)


@pytest.fixture
def patient(settings):
    return settings(
        STUDENT__MODEL="builtin", TRAIN__EPOCHS=4, TRAIN__BATCH_SIZE=4, TRAIN__PATIENCE=2
    )


def test_a_training_without_a_gain_ends_early(patient, monkeypatch):
    give_measures(monkeypatch, 0.1, 0.5, 0.4, 0.44, 0.9, 0.9)
    storage = write_labels(patient, PAIRS)
    main(patient)
    assert read_manifest(storage, ADAPTER).summary["updates"] == 16
    assert read_manifest(storage, ADAPTER).summary["best_update"] == 8


@pytest.mark.parametrize("place", ["jobs.train.write_adapter", "jobs.train.Checkpoints.remove_all"])
def test_a_training_that_was_cut_off_at_its_end_is_not_gone_on_with(patient, monkeypatch, place):
    measured = give_measures(monkeypatch, 0.1, 0.5, 0.4, 0.44, 0.9, 0.9)
    storage = write_labels(patient, PAIRS)

    def crash(*arguments):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(place, crash)
        with pytest.raises(Crash):
            main(patient)
    measured[3:] = []  # the last one is not in the checkpoint, and is measured again
    main(patient)
    assert read_manifest(storage, ADAPTER).summary["updates"] == 16
    assert read_manifest(storage, ADAPTER).summary["best_update"] == 8
    assert storage.list_files("checkpoints") == []


def test_a_signal_during_an_evaluation_finds_what_is_done_saved(tiny, monkeypatch):
    storage = write_labels(tiny, PAIRS)
    measure = make_measure
    whole = []

    def make(*arguments):
        def interrupted(model):
            if not whole:
                os.kill(os.getpid(), signal.SIGTERM)
                whole.append(model)
            return measure(*arguments)(model)

        return interrupted

    monkeypatch.setattr("jobs.train.make_measure", make)
    with pytest.raises(StoppedError):
        main(tiny)
    assert Checkpoints(storage, {}).list_updates() == [4]
    main(tiny)
    history = [json.loads(line) for line in storage.read_bytes(HISTORY_FILE).splitlines()]
    assert [entry["step"] for entry in history if "eval_agreement" in entry] == [4, 8, 12]


def test_agreement_is_the_share_of_labels_that_the_student_gives_exactly(tiny):
    tokenizer, task = load_tokenizer(tiny), load_task("gec")
    model = load_weights(tiny)
    texts = ["The old man sees a book.", "Le chat dort."]
    prompts = [encode_prompt(tokenizer, task, text) for text in texts]
    runtime = TransformersRuntime(model, tokenizer)
    answers = [response.text for response in runtime.generate(prompts, 60, 4096)]
    pairs = list(zip(texts, [answers[0], answers[1] + "x"], strict=True))
    run, objective = open_run(tiny), Supervised(task, tokenizer)
    measured = make_measure(run, tokenizer, objective, make_rows(pairs))(model)
    assert measured["agreement"] == 0.5
    rows = [encode_example(tokenizer, task, *pair) for pair in pairs]
    total = count = 0
    with torch.no_grad():
        for row in rows:
            labels = torch.tensor([row["labels"]])
            learned = int((labels != -100).sum())
            ids = torch.tensor([row["input_ids"]])
            total += float(model(input_ids=ids, labels=labels).loss) * learned
            count += learned
    assert measured["loss"] == pytest.approx(total / count, rel=1e-4)


def test_labels_are_held_out_and_ordered_by_their_texts_alone(tiny, settings):
    def load(own, pairs):
        objective = Supervised(load_task("gec"), load_tokenizer(own))
        storage = write_labels(own, pairs)
        found = load_train_set(own, storage, ["labels/part-00000.parquet"], objective)
        return found.labels.to_list(), [row.text for row in found.held_out]

    labels, held_out = load(tiny, PAIRS)
    assert (len(labels), len(held_out)) == (22, 2)
    assert load(tiny, PAIRS[::-1]) == (labels, held_out)
    one = settings(STUDENT__MODEL="builtin", TRAIN__HELD_OUT=1)
    assert load(one, PAIRS)[1] == held_out[:1]
    assert [len(part) for part in load(tiny, PAIRS[:9])] == [9, 0]


@pytest.mark.parametrize("count", [1, 9])
def test_few_labels_are_learned_without_a_choice(tiny, count):
    storage = write_labels(tiny, PAIRS[:count])
    main(tiny)
    manifest = read_manifest(storage, ADAPTER)
    assert manifest.counts["held_out"] == 0
    assert manifest.summary["agreement"] is None


def test_a_loss_that_is_no_number_stops_the_job_and_keeps_the_last_checkpoint(
    tiny, settings, monkeypatch
):
    own = settings(TRAIN__CHECKPOINT_SECONDS=1e-9)
    storage = write_labels(own, PAIRS)
    compute_loss = LabelTrainer.compute_loss

    def spoil(self, model, inputs, **values):
        loss = compute_loss(self, model, inputs, **values)
        if self.state.global_step == 5:
            loss = loss * float("nan")
            self.track_finite(loss)
        return loss

    monkeypatch.setattr(LabelTrainer, "compute_loss", spoil)
    with pytest.raises(SettingsError, match=r"before update 6; lower DISTILL_TRAIN__LEARNING_RATE"):
        main(own)
    assert Checkpoints(storage, {}).list_updates()[-1] == 5


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_too_little_memory_names_the_settings_to_lower(tiny, monkeypatch, error):
    write_labels(tiny, PAIRS)

    def fail(self, *arguments, **values):
        raise error

    monkeypatch.setattr(LabelTrainer, "compute_loss", fail)
    with pytest.raises(SettingsError, match=r"memory.*DISTILL_TRAIN__BATCH_SIZE \(now 4\)"):
        main(tiny)


def test_another_runtime_error_is_not_taken_for_it(tiny, monkeypatch):
    write_labels(tiny, PAIRS)

    def fail(self, *arguments, **values):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(LabelTrainer, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        main(tiny)


def test_trackers_of_the_trainer_get_the_curves(tiny, settings):
    storage = write_labels(tiny, PAIRS)
    main(settings(TRAIN__REPORT_TO="tensorboard"))
    (name,) = [n for n in read_manifest(storage, ADAPTER).files if "tensorboard/" in n]
    curves = storage.read_bytes(name)
    assert all(curve in curves for curve in (b"train/loss", b"eval/agreement"))


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
def test_a_layer_gives_what_pefts_does(settings, monkeypatch, quantization, is_native, is_training):
    monkeypatch.setattr("common.student.weights.has_bf16", lambda: is_native)
    student = {"STUDENT__MODEL": "builtin", "STUDENT__QUANTIZATION": quantization}
    own = settings(**student, TRAIN__LORA_RANK="8")
    model = add_adapter(own, load_weights(own))
    layer = model.base_model.model.model.layers[0].mlp.up_proj.train(is_training)
    for weight in layer.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    assert layer.scaling["default"] != 1
    found = []
    for forward in (layer, partial(type(layer).forward, layer)):
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        output = forward(x)
        layer.zero_grad()
        (output**2).sum().backward()
        weights = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        found.append([output, x.grad, *(w.grad.clone() for w in weights)])
    for ours, theirs in zip(*found, strict=True):
        difference = (ours - theirs).float().norm() / theirs.float().norm()
        assert difference < (0.02 if is_native else 1e-6)


@pytest.mark.usefixtures("in_fp32")
def test_a_variant_of_lora_is_left_to_peft(settings):
    """DoRA has a magnitude of its own, which the quick forward does not know."""
    own = settings(STUDENT__MODEL="builtin", STUDENT__QUANTIZATION="none")
    config = make_lora(own.train)
    config.use_dora = True
    with mock.patch("common.training.lora.make_lora", return_value=config):
        model = add_adapter(own, load_weights(own))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    outputs = [layer.train(is_training)(x) for is_training in (True, False)]
    torch.testing.assert_close(*outputs)
    plain = layer.base_layer(x) + layer.scaling["default"] * (
        layer.lora_B["default"](layer.lora_A["default"](x))
    )
    assert not torch.allclose(outputs[0], plain)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("name", "value"), [("TRAIN__REPORT_TO", "nosuch"), ("TRAIN__TARGET_MODULES", "q_proj,lm_head")]
)
def test_settings_that_the_trainer_refuses_are_named(tiny, settings, name, value):
    write_labels(tiny, PAIRS)
    with pytest.raises(SettingsError, match=f"DISTILL_{name}='{value}'"):
        main(settings(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"), [("TRAIN__REPORT_TO", "nosuch"), ("TRAIN__TARGET_MODULES", "q_proj,qproj")]
)
def test_settings_that_the_trainer_would_refuse_are_known_without_weights(
    tiny, settings, name, value
):
    check_training(tiny)
    with pytest.raises(SettingsError, match=f"DISTILL_{name}='{value}'"):
        check_training(settings(**{name: value}))


def test_a_preset_that_learns_the_same_goes_on_with_the_checkpoint(tiny, settings, monkeypatch):
    storage = write_labels(tiny, PAIRS)
    with monkeypatch.context() as patch:
        patch.setattr("jobs.train.write_adapter", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(tiny)
    lean = PRESETS["builtin"] | PRESETS["lean"]
    main(
        settings(
            TRAIN__PRESET="lean",
            **{f"TRAIN__{n.upper()}": v for n, v in lean.items()}
            | {"TRAIN__EPOCHS": 2, "TRAIN__BATCH_SIZE": 4},
        )
    )
    assert read_manifest(storage, ADAPTER).summary["updates"] == 12


def test_a_merged_student_answers_as_the_adapter_does(tiny, settings):
    storage = write_labels(tiny, PAIRS)
    main(tiny)
    main(settings(TRAIN__MERGE="true"))  # later, on the adapter that is there
    manifest = read_manifest(storage, MERGED)
    assert manifest.summary == {"compared_prompts": 24, "equal_answers": 24}
    merged = AutoModelForCausalLM.from_pretrained(storage.path("merged"))
    assert not any("lora" in name for name, _ in merged.named_parameters())
    base = AutoModelForCausalLM.from_pretrained(find_student(tiny))
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(merged.get_parameter(name), base.get_parameter(name))
    assert AutoTokenizer.from_pretrained(storage.path("merged")).chat_template


def test_a_rerun_of_a_finished_training_publishes_again(tiny, settings):
    write_labels(tiny, PAIRS)
    main(tiny)
    with mock.patch("jobs.train.push") as push:
        main(settings(TRAIN__PUSH_TO="someone/grammar"))
    push.assert_called_once()


def test_the_reference_preset_has_the_published_size(settings, tmp_path):
    """TinyLlama-1.1B's configuration: 1.13 M trainable parameters, a 4.5 MB adapter."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2_048,
        intermediate_size=5_632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        adapted = get_peft_model(model, make_lora(settings(TRAIN__PRESET="reference").train))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 1_126_400
    assert trained * 4 == pytest.approx(4.5e6, rel=0.01)


def test_only_ok_labels_are_learned(tiny):
    storage = write_labels(tiny, PAIRS, status="filtered")
    with pytest.raises(InputError, match="none of its 24 rows has status ok: 24 filtered"):
        list(iterate_labels(storage, ["labels/part-00000.parquet"]))


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
    assert read_manifest(storage, ADAPTER).settings["train"]["preset"] == "default"
    assert json.loads(storage.read_bytes(HISTORY_FILE).splitlines()[-1])["train_loss"] > 0


def test_rows_longer_than_the_students_positions_are_dropped(tiny, settings, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(find_student(tiny), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 80}))
    own = settings(STUDENT__MODEL=str(folder))
    storage = write_labels(own, [*PAIRS, ("word " * 80, "Word " * 80)])
    main(own)
    assert read_manifest(storage, ADAPTER).counts["dropped_too_long"] == 1


DAMAGES = {
    "adapter_model.safetensors": b"half",
    "optimizer.pt": b"PK\x03\x04half",
    "trainer_state.json": b"{",
    "_manifest.json": b"{",
    "rng_state.pth": None,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tiny, settings, monkeypatch, caplog, name
):
    own = settings(TRAIN__CHECKPOINT_SECONDS=1e-9)
    main(settings(RUN="whole") if write_labels(settings(RUN="whole"), PAIRS) else own)
    cut = settings(RUN="cut")
    storage = write_labels(cut, PAIRS)
    compute_loss, calls = LabelTrainer.compute_loss, []

    def crash(self, *arguments, **values):
        calls.append(self.state.global_step)
        if calls.count(6) == 1 and calls[-1] == 6:
            raise Crash
        return compute_loss(self, *arguments, **values)

    monkeypatch.setattr(LabelTrainer, "compute_loss", crash)
    with pytest.raises(Crash):
        main(cut)
    kept = Checkpoints(storage, {}).list_updates()
    assert kept == [4, 6]
    damage(storage, f"checkpoints/{kept[-1]:08}/{name}")
    main(cut)
    assert "checkpoints/00000006" in caplog.text
    assert "going on from the one before" in caplog.text
    again, whole = read_adapter(storage), read_adapter(RunStorage(settings(RUN="whole")))
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def damage(storage, name):
    content = DAMAGES[name.split("/")[-1]]
    storage.remove(name)
    if content is not None:
        storage.write_bytes(name, content)


def test_only_damaged_checkpoints_name_the_folder_to_delete(tiny):
    checkpoints = Checkpoints(RunStorage(tiny), {})
    folder = Path("local")
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"half")
    checkpoints.save(folder, 5, 5)
    with pytest.raises(InputError, match=r"00000005 is damaged .*; delete .*/checkpoints, and run"):
        checkpoints.load_latest(Path("into"))
    assert checkpoints.list_updates() == [5]


AUTO = {"TRAIN__PRESET": "auto", "STUDENT__MODEL": "builtin", "TRAIN__EVALUATIONS": 1}


def test_rates_are_tried_on_a_tenth_of_the_labels_and_the_best_one_is_taken(settings, monkeypatch):
    own = settings(**AUTO, TRAIN__EPOCHS=1, TRAIN__HELD_OUT=4, TRAIN__BATCH_SIZE=4)
    pairs = [(f"the {i} dog sleep", f"The {i} dogs sleep.") for i in range(180)]
    storage = write_labels(own, pairs)
    tried = []

    def train_on(subsets, settings, labels):
        rate = settings.train.learning_rate
        tried.append((rate, len(labels)))
        if len(tried) == 3:
            raise StoppedError(143)
        return {"agreement": 0.5 + (rate > 3e-3), "loss": rate}

    monkeypatch.setattr("common.training.subsets.Subsets._train", train_on)
    with pytest.raises(StoppedError):
        main(own)
    main(own)
    # the third one was interrupted; the first two are kept
    assert tried == [(1.2e-3, 17), (3.1e-3, 17), (7.7e-3, 17), (7.7e-3, 17)]
    manifest = read_manifest(storage, ADAPTER)
    assert manifest.fingerprint["train.learning_rate"] == 3.1e-3  # as good, with less loss
    main(own)
    assert len(tried) == 4
    shutil.rmtree(storage.path("adapter"))
    main(settings(**AUTO, TRAIN__LEARNING_RATE="1e-3"))
    assert len(tried) == 4
    assert read_manifest(storage, ADAPTER).fingerprint["train.learning_rate"] == 1e-3


def test_few_labels_are_not_tried_on(settings, caplog):
    own = settings(**AUTO, TRAIN__EPOCHS=1)
    storage = write_labels(own, PAIRS)
    main(own)
    assert "too few labels to try learning rates on; taking 0.0031" in caplog.text
    assert read_manifest(storage, ADAPTER).fingerprint["train.learning_rate"] == 3.1e-3
