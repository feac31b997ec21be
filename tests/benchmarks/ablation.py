"""What the training's settings are worth: `make ablation`.

    python -m tests.benchmarks.ablation                         all, for hours on a CPU
    python -m tests.benchmarks.ablation --only 'rank*' --seeds 1
    python -m tests.benchmarks.ablation --source ../shared/data/multilingual_gec

The built-in student learns the stand-in teacher's labels, one setting at a time other than the
default, and is scored on the test split: exact match with the references, its 95 % interval, and
that over the seeds. (The defaults that are chosen by it are so a little better on that split than
elsewhere.) Results go to build/ablation.json as they come; a rerun does only the rest.
"""

import argparse
import fnmatch
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from datasets import Dataset
from transformers import set_seed

from common.builtin.correction import correct
from common.data.examples import load_examples
from common.data.testset import load_test_rows
from common.environment import load_settings
from common.metrics.metrics import exact_match
from common.metrics.statistics import wilson_interval
from common.records import LabelRow
from common.settings import Settings
from common.student.generation import TransformersRuntime
from common.student.prompt import encode_prompt, load_tokenizer
from common.tasks.rules import apply_rules
from common.tasks.task import load_task
from common.training.trainer import make_trainer
from jobs.train import make_objective
from tests.benchmarks.measure import BUILD, describe_seeds, print_table


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    labels: int = 1_000
    are_filtered: bool = True
    variables: dict[str, str] = field(default_factory=dict)


def vary(name: str, variable: str, *values: str) -> list[Case]:
    return [Case(f"{name} {v}", variables={f"TRAIN__{variable}": v}) for v in values]


REFERENCE = {
    "TRAIN__LORA_RANK": "8",
    "TRAIN__LORA_ALPHA": "8",
    "TRAIN__LORA_DROPOUT": "0.1",
    "TRAIN__TARGET_MODULES": "q_proj,v_proj",
    "TRAIN__WARMUP_STEPS": "100",
    "TRAIN__WEIGHT_DECAY": "0.05",
    "TRAIN__BATCH_SIZE": "8",
    "TRAIN__MAX_GRAD_NORM": "0.3",
}
"""The published experiment's settings but for its learning rate, which 2 M parameters outgrow."""

CASES = [
    Case("default"),
    Case("reference, learning rate 3e-3", variables=REFERENCE),
    Case("reference, as published", variables=REFERENCE | {"TRAIN__LEARNING_RATE": "2e-4"}),
    *vary("targets", "TARGET_MODULES", "q_proj,v_proj", "q_proj,k_proj,v_proj,o_proj"),
    *vary("rank", "LORA_RANK", "1", "2", "4", "8", "16"),
    *vary("alpha", "LORA_ALPHA", "16"),
    *vary("dropout", "LORA_DROPOUT", "0.05", "0.1"),
    *vary("learning rate", "LEARNING_RATE", "1e-3", "2e-3", "5e-3"),
    *vary("edit weight", "EDIT_WEIGHT", "1"),
    *vary("batch", "BATCH_SIZE", "8", "32"),
    *(Case(f"labels {n}", labels=n) for n in (500, 2_000, 5_000)),
    Case("unfiltered labels", are_filtered=False),
]


def measure(case: Case, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores once."""
    settings = configure(case, seed, options)
    task, tokenizer = load_task("gec"), load_tokenizer(settings)
    labels = []
    for example in load_examples(settings, task).first:
        label, error = apply_rules(example.text, correct(example.text), task.label_rules)
        if error is None or not case.are_filtered:
            labels.append(LabelRow(example.id, example.text, "ok", label))
    objective = make_objective(settings, task, tokenizer)
    rows = labels[: case.labels]
    dataset = Dataset.from_list([t for row in rows for t in objective.encode_targets(row)])
    test = load_test_rows(settings, task).rows
    prompts = [encode_prompt(tokenizer, task, row.text) for row in test]
    set_seed(seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(settings, tokenizer, objective, dataset, Path(folder))
        trainer.train()
    seconds = time.monotonic() - started
    responses = TransformersRuntime(trainer.model, tokenizer).generate(
        prompts, max_new_tokens=options.max_new_tokens, batch_tokens=8192
    )
    hits = [
        exact_match(row.text, r.text, row.references)
        for r, row in zip(responses, test, strict=True)
    ]
    return {"exact_match": statistics.mean(hits), "n": len(hits), "train_seconds": seconds}


def configure(case: Case, seed: int, options: argparse.Namespace) -> Settings:
    variables = {
        "STUDENT__MODEL": "builtin",
        "DATA__SOURCE": options.source,
        "DATA__TRAIN_LIMIT": str(2 * case.labels),  # some are filtered
        "DATA__TEST_LIMIT": str(options.test_rows),
        "TRAIN__SEED": str(seed),
        **case.variables,
    }
    with mock.patch.dict(os.environ, {f"DISTILL_{n}": v for n, v in variables.items()}):
        return load_settings()


def show(cases: list[Case], results: dict[str, Any], options: argparse.Namespace) -> None:
    rows = []
    for case in cases:
        found = [
            r for s in range(options.seeds) if (r := results.get(name_result(case, s, options)))
        ]
        if not found:
            continue
        scores, n = [r["exact_match"] for r in found], found[0]["n"]
        mean = statistics.mean(scores)
        low, high = wilson_interval(mean, n)
        rows.append(
            {
                "setting": case.name,
                "exact match %": f"{100 * mean:.1f}",
                "over the seeds": describe_seeds(scores),
                "over the rows": f"{100 * low:.1f} – {100 * high:.1f}",
                "seconds": f"{statistics.mean(r['train_seconds'] for r in found):.0f}",
            }
        )
    if rows:
        print_table(f"{options.source}: n {found[0]['n']}, {options.seeds} seeds", rows)


def name_result(case: Case, seed: int, options: argparse.Namespace) -> str:
    return f"{Path(options.source).name}, {options.test_rows} rows, {case.name}, seed {seed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="builtin", help="data set, as DISTILL_DATA__SOURCE")
    parser.add_argument("--only", default="*", help="pattern of the settings' names")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test-rows", type=int, default=500)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    options = parser.parse_args()
    cases = [case for case in CASES if fnmatch.fnmatch(case.name, options.only)]
    BUILD.mkdir(exist_ok=True)
    path = BUILD / "ablation.json"
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for seed in range(options.seeds):
        for case in cases:
            name = name_result(case, seed, options)
            if name not in results:
                results[name] = measure(case, seed, options)
                path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
                print(f"{name}: {results[name]}", flush=True)
    show(cases, results, options)


if __name__ == "__main__":
    main()
