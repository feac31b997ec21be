"""The labels as the student learns them: which of them, and in which tokens."""

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from common.errors import InputError
from common.records import hash_text
from common.settings import Settings
from common.storage import RunStorage
from common.student import encode_example
from common.tasks import Task

Labels = list[tuple[str, str]]
"""Pairs of text and label."""
_MOST_HELD_OUT = 0.1
"""The share of the labels that is held out at most."""


def read_labels(storage: RunStorage, files: list[str]) -> Labels:
    """Pairs of text and label, of the rows with status ok.

    Raises:
        InputError: there is none.
    """
    rows = [row for name in files for row in storage.read_table(name).to_pylist()]
    labels = [(row["text"], row["label"]) for row in rows if row["status"] == "ok"]
    if not labels:
        raise InputError(f"{storage.url}/labels: none of its {len(rows)} rows has status ok")
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
