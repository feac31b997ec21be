"""Measures the train job beside the reference's way: `make bench-train`.

    python -m tests.benchmarks.train                  speed and memory: TinyLlama's size on a GPU,
                                                      the built-in student on a CPU
    python -m tests.benchmarks.train --loss           held-out loss after equal examples, by seeds

`reference` is the published experiment's way: transformers' Trainer, padded batches in random
order, what prepare_model_for_kbit_training does (gradient checkpointing, embeddings and head in
fp32), logits of all tokens. `reference LoRA` is this project's trainer with that experiment's
adapter, `default` and `lean` are its presets. All by turns; weights are random on a GPU, where only
time and memory are measured. Raw figures go to build/bench-train.json.
"""

import argparse
import gc
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from common.builtin.correction import correct
from common.data.examples import load_examples
from common.environment import load_settings
from common.settings import Settings
from common.student.prompt import encode_example, load_tokenizer
from common.student.source import find_student
from common.student.weights import load_weights
from common.tasks.task import load_task
from common.training.agreement import measure_loss
from common.training.lora import make_lora
from common.training.objectives.supervised import Supervised
from common.training.trainer import make_trainer
from tests.benchmarks.measure import BUILD, print_table

TINY_LLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 2_048,
    "intermediate_size": 5_632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2_048,
}
"""The architecture of TinyLlama-1.1B."""
_PROMPT_TOKENS, _LABEL_TOKENS = (60, 90), (25, 40)
_SHARED_TOKENS = 35
"""What all prompts begin with, as those of `gec` do with SmolLM2's chat template."""
WARM_UP_UPDATES = 5


class Clock(TrainerCallback):
    """Times the updates after the first few, all together."""

    def __init__(self) -> None:
        self.seconds = self._then = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP_UPDATES:
            self._then = read_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = read_time() - self._then


def read_time() -> float:
    """The time when the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def train_as_reference(
    settings: Settings, tokenizer: Any, dataset: Dataset, folder: Path, callback: TrainerCallback
) -> Any:
    """Trains the published experiment's way; gives the model."""
    train, on_gpu = settings.train, torch.cuda.is_available()
    # which casts to fp32, also what would be multiplied in bf16
    model = prepare_model_for_kbit_training(load_weights(settings, is_exact=True))
    model = get_peft_model(model, make_lora(train))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=train.epochs,
            per_device_train_batch_size=train.batch_size,
            learning_rate=train.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=train.warmup_steps,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            seed=train.seed,
            use_cpu=not on_gpu,
            bf16=on_gpu,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=on_gpu,
        ),
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        callbacks=[callback],
    )
    trainer.train()
    return model


def train_as_project(
    settings: Settings, tokenizer: Any, dataset: Dataset, folder: Path, callback: TrainerCallback
) -> Any:
    """Trains as the train job does; gives the model."""
    objective = Supervised(load_task("gec"), tokenizer)
    trainer = make_trainer(settings, tokenizer, objective, dataset, folder, None, [callback])
    trainer.train()
    return trainer.model


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Examples a second and peak memory of each way."""
    ways = {
        "reference": ("reference", train_as_reference),
        "reference LoRA": ("reference", train_as_project),
        "default": ("default", train_as_project),
        "lean": ("lean", train_as_project),
    }
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    warm_ups = 1 if torch.cuda.is_available() else 0  # a process' first kernels take long
    with preparing_student() as student:
        for turn in range(-warm_ups, options.rounds):
            for name, (preset, run) in ways.items():
                settings = configure(student, preset, options.batch_size)
                tokenizer = load_tokenizer(settings)
                updates = options.updates + WARM_UP_UPDATES
                dataset = make_random_rows(updates * options.batch_size, len(tokenizer))
                reset_memory()
                clock = Clock()
                with tempfile.TemporaryDirectory() as folder:
                    run(settings, tokenizer, dataset, Path(folder), clock)
                rate = options.updates * options.batch_size / clock.seconds
                figure = {"examples_per_second": rate}
                if torch.cuda.is_available():
                    figure["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
                if turn >= 0:
                    figures[name].append(figure)
                print(f"round {turn + 1}, {name}: {figure}", flush=True)
    show_speed(figures)
    return figures


def show_speed(figures: dict[str, list[dict[str, float]]]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows = []
    for name, turns in figures.items():
        rates = [turn["examples_per_second"] for turn in turns]
        ratios = [
            turn["examples_per_second"] / other["examples_per_second"]
            for turn, other in zip(turns, figures["reference"], strict=True)
        ]
        peaks = [turn["peak_gb"] for turn in turns if "peak_gb" in turn]
        rows.append(
            {
                "way": name,
                "examples/s": f"{statistics.median(rates):.1f}",
                "times the reference": f"{statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} – {max(ratios):.2f})",
                "peak GB": f"{max(peaks):.2f}" if peaks else "",
            }
        )
    print_table(f"Training speed on {device}", rows)


def measure_losses(options: argparse.Namespace) -> dict[str, Any]:
    """The built-in student's held-out loss after one pass, both ways with the same adapter."""
    data = configure("builtin", "builtin", 16, DATA__SOURCE="builtin", DATA__TRAIN_LIMIT="0")
    examples = load_examples(data, load_task("gec")).first
    texts = [example.text for example in examples[: options.labels + 200]]
    figures: dict[str, list[float]] = {"reference": [], "project": []}
    for seed in range(options.seeds):
        settings = configure("builtin", "builtin", 16, TRAIN__EPOCHS="1", TRAIN__SEED=str(seed))
        tokenizer, task = load_tokenizer(settings), load_task("gec")
        rows = [encode_example(tokenizer, task, text, correct(text)) for text in texts]
        held_out, learned = rows[:200], Dataset.from_list(rows[200:])
        for name, run in (("reference", train_as_reference), ("project", train_as_project)):
            set_seed(seed)
            with tempfile.TemporaryDirectory() as folder:
                model = run(settings, tokenizer, learned, Path(folder), TrainerCallback())
            figures[name].append(measure_loss(model, Supervised(task, tokenizer), held_out, 8192))
            print(f"seed {seed}, {name}: {figures[name][-1]:.4f}", flush=True)
    rows = [
        {
            "way": name,
            "held-out loss": f"{statistics.mean(losses):.4f}",
            "by seed": ", ".join(f"{loss:.4f}" for loss in losses),
        }
        for name, losses in figures.items()
    ]
    print_table(f"Loss after {options.labels} labels, one pass", rows)
    return figures


def make_random_rows(count: int, vocabulary: int) -> Dataset:
    """Rows of realistic lengths, of random tokens, whose prompts begin alike."""
    rng = random.Random(0)
    shared, rows = [rng.randrange(5, vocabulary) for _ in range(_SHARED_TOKENS)], []
    for _ in range(count):
        prompt, label = rng.randint(*_PROMPT_TOKENS), rng.randint(*_LABEL_TOKENS)
        ids = [rng.randrange(5, vocabulary) for _ in range(prompt + label)]
        ids[:_SHARED_TOKENS] = shared
        rows.append(
            {
                "input_ids": ids,
                "labels": [-100] * prompt + ids[prompt:],
                "attention_mask": [1] * len(ids),
            }
        )
    return Dataset.from_list(rows)


@contextmanager
def preparing_student() -> Iterator[str]:
    """A folder with random weights of TinyLlama's size, where there is a GPU; else `builtin`."""
    if not torch.cuda.is_available():
        yield "builtin"
        return
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(**TINY_LLAMA)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        source = find_student(configure("builtin", "builtin", 8))
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        assert AutoConfig.from_pretrained(folder).vocab_size == TINY_LLAMA["vocab_size"]
        del model
        yield folder


def configure(student: str, preset: str, batch_size: int, **more: str) -> Settings:
    variables = {
        "STUDENT__MODEL": student,
        "TRAIN__PRESET": preset,
        "TRAIN__BATCH_SIZE": str(batch_size),
        "TRAIN__EPOCHS": "1",
        "TRAIN__WARMUP_STEPS": "5",
    } | more
    with mock.patch.dict(os.environ, {f"DISTILL_{n}": v for n, v in variables.items()}):
        return load_settings()


def reset_memory() -> None:
    gc.collect()  # trainers and models refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of speed (3)")
    parser.add_argument("--updates", type=int, default=40, help="that are timed (40)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--loss", action="store_true", help="measure the loss instead")
    parser.add_argument("--labels", type=int, default=1_600, help="of the loss (1600)")
    parser.add_argument("--seeds", type=int, default=3, help="of the loss (3)")
    options = parser.parse_args()
    name = "loss" if options.loss else "speed"
    figures = measure_losses(options) if options.loss else measure_speed(options)
    BUILD.mkdir(exist_ok=True)
    path = BUILD / "bench-train.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | {name: figures}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
