"""The labels as the student learns them: which of them, and in which tokens."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from common.errors import InputError
from common.records import hash_content, hash_text
from common.run.storage import RunStorage
from common.settings import Settings
from common.student.student import encode_example
from common.tasks.model import Task

Labels = list[tuple[str, str]]
"""Pairs of text and label."""
_MOST_HELD_OUT = 0.1
"""The share of the labels that is held out at most."""


@dataclass(frozen=True)
class TrainSet:
    """What is learned from."""

    labels: Dataset
    """In tokens."""
    held_out: Labels
    """To choose the checkpoint by; empty if the labels are few."""
    counts: dict[str, int]


def load_train_set(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    files: list[str],
    tokenizer: PreTrainedTokenizerBase,
) -> TrainSet:
    """The usable labels in `files`.

    Raises:
        InputError: there is none.
    """
    found = read_labels(storage, files)
    fitting = drop_over_long(settings, task, tokenizer, found)
    labels, held_out = hold_out(fitting, settings.train.held_out)
    counts = {
        "labels": len(labels),
        "held_out": len(held_out),
        "dropped_too_long": len(found) - len(fitting),
    }
    return TrainSet(encode_labels(task, tokenizer, labels), held_out, counts)


def fingerprint_labels(manifest: dict[str, Any]) -> str:
    """A hash of what the labels were made of, by their manifest."""
    return hash_content([manifest[key] for key in ("fingerprint", "counts")])


def read_labels(storage: RunStorage, files: list[str]) -> Labels:
    """Pairs of text and label, of the rows with status ok.

    Raises:
        InputError: there is none.
    """
    rows = [row for name in files for row in storage.read_table(name).to_pylist()]
    labels = [(row["text"], row["label"]) for row in rows if row["status"] == "ok"]
    if not labels:
        counts = Counter(f"{row['status']} ({row['error']})" for row in rows)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common(3))
        raise InputError(
            f"{storage.url}/labels: none of its {len(rows)} rows has status ok: {reasons}; read "
            "their column response, change the task's [label_rules], delete the folder labels, "
            "and run python -m jobs.label again"
        )
    return labels


def drop_over_long(
    settings: Settings, task: Task, tokenizer: PreTrainedTokenizerBase, labels: Labels
) -> Labels:
    """The labels that are short enough, with their prompts, for `student.max_tokens`.

    Over-long ones are dropped and never cut: a cut would take off the end-of-sequence token.

    Raises:
        InputError: none is.
    """
    limit = settings.student.max_tokens
    kept = [
        (text, label)
        for text, label in labels
        if len(encode_example(tokenizer, task, text, label)["input_ids"]) <= limit
    ]
    if not kept:
        raise InputError(
            f"all {len(labels)} labels are longer than DISTILL_STUDENT__MAX_TOKENS={limit}; "
            "raise it"
        )
    return kept


def hold_out(labels: Labels, count: int) -> tuple[Labels, Labels]:
    """Labels to learn from, and up to `count` others, chosen by the hash of their text."""
    count = min(count, int(len(labels) * _MOST_HELD_OUT))
    chosen = set(sorted({hash_text(text) for text, _ in labels})[:count])
    kept = [pair for pair in labels if hash_text(pair[0]) not in chosen]
    return kept, [pair for pair in labels if hash_text(pair[0]) in chosen]


def encode_labels(task: Task, tokenizer: PreTrainedTokenizerBase, labels: Labels) -> Dataset:
    """The training set in tokens."""
    return Dataset.from_list([encode_example(tokenizer, task, *pair) for pair in labels])
