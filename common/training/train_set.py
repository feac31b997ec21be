"""The labels as training data: selected, encoded, some held out."""

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

from datasets import Dataset

from common.errors import InputError
from common.records import LabelRow, hash_content, hash_text
from common.run.manifest import Manifest
from common.run.storage import RunStorage
from common.settings import Settings, find_default
from common.training.objectives.objective import Objective

Labels = list[LabelRow]
"""Rows with status ok."""
_TEACHER_SETTINGS = ("endpoint", "max_tokens", "temperature", "logprobs")
_FIRST_SETTINGS = (*(f"teacher.{name}" for name in _TEACHER_SETTINGS), "label.samples")
"""Settings that fingerprints of version 0.1, and so these hashes, have also at their default."""
_MAX_HELD_OUT = 0.1
"""The largest share of the labels that is held out."""


@dataclass(frozen=True)
class TrainSet:
    """Encoded labels, and others held out to choose the checkpoint (none of fewer than 10)."""

    labels: Dataset
    held_out: Labels
    counts: dict[str, int]


def load_train_set(
    settings: Settings, storage: RunStorage, files: list[str], objective: Objective
) -> TrainSet:
    """The usable labels in `files`.

    Over-long ones are dropped, not truncated: that would cut the end-of-sequence token.

    Raises:
        InputError: no label is usable.
    """
    found, limit = read_labels(storage, files), settings.student.max_tokens
    encoded = {row.id: objective.encode(row) for row in found}
    fitting = [row for row in found if len(encoded[row.id]["input_ids"]) <= limit]
    if not fitting:
        raise InputError(
            f"all {len(found)} labels are longer than DISTILL_STUDENT__MAX_TOKENS={limit}; raise it"
        )
    labels, held_out = hold_out(fitting, settings.train.held_out)
    counts = {
        "labels": len(labels),
        "held_out": len(held_out),
        "dropped_too_long": len(found) - len(fitting),
    }
    return TrainSet(Dataset.from_list([encoded[row.id] for row in labels]), held_out, counts)


def fingerprint_labels(manifest: Manifest[Any]) -> str:
    """A hash of the labels' fingerprint and counts."""
    first = {name: find_default(name) for name in _FIRST_SETTINGS}
    return hash_content([{**first, **manifest.fingerprint}, manifest.counts])


def read_labels(storage: RunStorage, files: list[str]) -> Labels:
    """The rows with status ok. Raises an InputError if there is none."""
    known = {f.name for f in fields(LabelRow)}
    rows = [row for name in files for row in storage.read_table(name).to_pylist()]
    labels = [
        LabelRow(**{name: value for name, value in row.items() if name in known})
        for row in rows
        if row["status"] == "ok"
    ]
    if not labels:
        counts = Counter(f"{row['status']} ({row['error']})" for row in rows)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common(3))
        raise InputError(
            f"{storage.url}/labels: none of its {len(rows)} rows has status ok: {reasons}; read "
            "their column response, change the task's [label_rules], delete the folder labels, "
            "and run python -m jobs.label again"
        )
    return labels


def hold_out(labels: Labels, count: int) -> tuple[Labels, Labels]:
    """Labels for training, and up to `count` others, chosen by the hash of their text."""
    count = min(count, int(len(labels) * _MAX_HELD_OUT))
    chosen = set(sorted({hash_text(row.text) for row in labels})[:count])
    kept = [row for row in labels if hash_text(row.text) not in chosen]
    return kept, [row for row in labels if hash_text(row.text) in chosen]
