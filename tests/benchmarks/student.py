"""What a real student gains on a CPU: `python -m tests.benchmarks.student x.gguf`.

Training: examples a second in fp32 with padded batches (as on CPUs without bf16, before batches
shared the prompt's start), in fp32 and in bf16 with packed ones. Evaluation: seconds for the same
rows by transformers' `generate` in fp32, and by this project's decoding in fp32 and bf16, zero-shot
and few-shot, and how many answers are equal to the first. All by turns, on sentences of the
built-in data set. Raw figures go to build/bench-student.json.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from common.torch_environment import prepare_torch

prepare_torch(os.environ)

from datasets import Dataset  # noqa: E402
from transformers import set_seed  # noqa: E402

from common.builtin.correction import correct  # noqa: E402
from common.data.examples import load_examples  # noqa: E402
from common.data.testset import load_test_rows  # noqa: E402
from common.records import LabelRow  # noqa: E402
from common.student.prompt import load_tokenizer  # noqa: E402
from common.student.student import open_student  # noqa: E402
from common.tasks.task import load_task  # noqa: E402
from common.training.objectives.supervised import Supervised  # noqa: E402
from common.training.trainer import make_trainer  # noqa: E402
from tests.benchmarks.measure import BUILD, print_table  # noqa: E402
from tests.benchmarks.train import WARM_UP_UPDATES, Clock, configure  # noqa: E402

_WAYS: dict[str, dict[str, Callable[..., Any]]] = {
    "fp32, padded or alone": {
        "common.student.weights.has_bf16": lambda: False,
        "common.training.objectives.supervised.can_pack": lambda model: False,
        "common.student.generation.can_share": lambda model: False,
    },
    "fp32": {"common.student.weights.has_bf16": lambda: False},
    "as it is": {},
}


@contextmanager
def going(way: str) -> Iterator[None]:
    with ExitStack() as stack:
        for name, replacement in _WAYS[way].items():
            stack.enter_context(mock.patch(name, replacement))
        yield


def train(options: argparse.Namespace, way: str) -> float:
    """Examples a second."""
    settings = configure(options.student, "default", options.batch_size, DATA__SOURCE="builtin")
    task, tokenizer = load_task("gec"), load_tokenizer(settings)
    count = (options.updates + WARM_UP_UPDATES) * options.batch_size
    texts = [example.text for example in load_examples(settings, task).first[:count]]
    objective = Supervised(task, tokenizer)
    rows = [objective.encode(LabelRow("", text, "ok", correct(text))) for text in texts]
    clock = Clock()
    set_seed(0)
    with going(way), tempfile.TemporaryDirectory() as folder:
        data = Dataset.from_list(rows)
        make_trainer(settings, tokenizer, objective, data, Path(folder), None, [clock]).train()
    return float(options.updates * options.batch_size / clock.seconds)


def evaluate(options: argparse.Namespace, way: str) -> list[tuple[float, list[str]]]:
    """Seconds and answers, zero-shot and few-shot."""
    settings = configure(options.student, "default", options.batch_size, DATA__SOURCE="builtin")
    task = load_task("gec")
    texts = [row.text for row in load_test_rows(settings, task).rows[: options.rows]]
    found = []
    with going(way):
        student = open_student(settings, task)
        for with_few_shot in (False, True):
            started = time.monotonic()
            answers = student.answer(texts, with_few_shot=with_few_shot, max_new_tokens=48)
            found.append((time.monotonic() - started, [answer.text for answer in answers]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("student", help="as DISTILL_STUDENT__MODEL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    figures: dict[str, dict[str, list[Any]]] = {
        way: {"examples/s": [], "zero": [], "few": [], "equal": []} for way in _WAYS
    }
    for turn in range(options.rounds):
        first: list[list[str]] = []
        for way, found in figures.items():
            found["examples/s"].append(train(options, way))
            zero, few = evaluate(options, way)
            first = first or [zero[1], few[1]]
            found["zero"].append(zero[0])
            found["few"].append(few[0])
            pairs = [*zip(zero[1], first[0], strict=True), *zip(few[1], first[1], strict=True)]
            found["equal"].append(statistics.mean(a == b for a, b in pairs))
            print(f"round {turn + 1}, {way}: { {k: v[-1] for k, v in found.items()} }", flush=True)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench-student.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    base = figures["fp32, padded or alone"]
    rows = [
        {
            "way": way,
            "examples/s": f"{statistics.median(found['examples/s']):.1f}",
            "times": spread(found["examples/s"], base["examples/s"]),
            "zero-shot, s": f"{statistics.median(found['zero']):.1f}",
            "few-shot, s": f"{statistics.median(found['few']):.1f}",
            "few / zero": spread(found["few"], found["zero"]),
            "equal answers": f"{min(found['equal']):.0%}",
        }
        for way, found in figures.items()
    ]
    print_table(f"{Path(options.student).name} on the CPU", rows)


def spread(ones: list[float], others: list[float]) -> str:
    ratios = [a / b for a, b in zip(ones, others, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"


if __name__ == "__main__":
    main()
