"""Measures how quickly a student answers: `make bench-evaluate`.

The evaluate job's `generate` beside a text-generation pipeline of transformers that is called one
prompt at a time, by turns, with the same student (4-bit, greedy) and the same prompts; on a GPU
with random weights of TinyLlama's size, which answer at full length. Their texts are compared, too.
Raw figures go to build/bench-evaluate.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from common.data.testset import load_test_rows
from common.student.generation import TransformersRuntime
from common.student.prompt import encode_prompt, load_tokenizer
from common.student.weights import load_weights
from common.tasks.task import load_task
from tests.benchmarks.measure import BUILD, print_table
from tests.benchmarks.train import configure, preparing_student

Answer = Callable[[list[list[int]]], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400, help="answered by generate (400)")
    parser.add_argument("--alone", type=int, default=40, help="answered one at a time (40)")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    with preparing_student() as student:
        settings = configure(student, "default", 8, DATA__SOURCE="builtin")
        tokenizer, model, task = load_tokenizer(settings), load_weights(settings), load_task("gec")
    rows = load_test_rows(settings, task).rows[: options.rows]
    prompts = [encode_prompt(tokenizer, task, row.text) for row in rows]
    limit = options.max_new_tokens
    one_by_one = pipeline("text-generation", model=model, tokenizer=tokenizer)

    def answer_alone(chosen: list[list[int]]) -> list[str]:
        texts = tokenizer.batch_decode(chosen, skip_special_tokens=False)
        arguments: dict[str, Any] = {"max_new_tokens": limit, "do_sample": False}
        return [
            one_by_one(text, return_full_text=False, **arguments)[0]["generated_text"].strip()
            for text in texts
        ]

    def answer_together(chosen: list[list[int]]) -> list[str]:
        tokens = settings.evaluate.batch_tokens
        found = TransformersRuntime(model, tokenizer).generate(
            chosen, max_new_tokens=limit, batch_tokens=tokens
        )
        return [response.text for response in found]

    figures: list[dict[str, float]] = []
    for turn in range(options.rounds):
        alone, alone_rate = measure(answer_alone, prompts[: options.alone])
        together, rate = measure(answer_together, prompts)
        equal = sum(a == b for a, b in zip(alone, together, strict=False))
        figures.append({"alone": alone_rate, "together": rate, "equal": equal / len(alone)})
        print(f"round {turn + 1}: {figures[-1]}", flush=True)
    show(figures)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench-evaluate.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def measure(answer: Answer, prompts: list[list[int]]) -> tuple[list[str], float]:
    """The answers, and rows a second."""
    started = time.monotonic()
    texts = answer(prompts)
    return texts, len(prompts) / (time.monotonic() - started)


def show(figures: list[dict[str, float]]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    ratios = [figure["together"] / figure["alone"] for figure in figures]
    row = {
        "pipeline, rows/s": f"{statistics.median(f['alone'] for f in figures):.1f}",
        "generate, rows/s": f"{statistics.median(f['together'] for f in figures):.1f}",
        "ratio": f"{statistics.median(ratios):.1f} ({min(ratios):.1f} – {max(ratios):.1f})",
        "same answers": f"{min(f['equal'] for f in figures):.0%}",
    }
    print_table(f"Answers on {device}", [row])


if __name__ == "__main__":
    main()
