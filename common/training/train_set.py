"""The labels as training data: selected, encoded, some held out.

Neither the labels nor what they are encoded to is held in memory.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from common.data.examples import pack_ids
from common.errors import InputError, SettingsError
from common.records import LABEL_SCHEMA, LabelRow, hash_content, hash_text
from common.run.manifest import Manifest
from common.run.rounds import read_rounds
from common.run.storage import RunStorage
from common.settings import Settings, find_default
from common.student.source import count_positions, read_config
from common.training.objectives.objective import Encoded, Objective
from common.training.objectives.targets import is_told

Labels = list[LabelRow]
"""Rows with status ok."""
_TEACHER_SETTINGS = ("endpoint", "max_tokens", "temperature", "logprobs")
_FIRST_SETTINGS = (*(f"teacher.{name}" for name in _TEACHER_SETTINGS), "label.samples")
"""Settings that fingerprints of version 0.1, and so these hashes, have also at their default."""
_MAX_HELD_OUT = 0.1
"""The largest share of the labels that is held out."""
_GROUP = 10_000

log = logging.getLogger(__name__)


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

    Those over the setting's limit, or the student's positions, are dropped, not truncated: that
    would cut the end-of-sequence token.

    Raises:
        InputError: no label is usable.
        SettingsError: the targets need what no label tells.
    """
    positions, most = count_positions(read_config(settings)), settings.train.held_out
    limit = min(settings.student.max_tokens, positions)
    counts: Counter[str] = Counter()
    ids: list[str] = []
    lowest: dict[str, LabelRow] = {}

    def encode() -> Iterator[Encoded]:
        for row in iterate_labels(storage, files):
            targets = [t for t in objective.encode_targets(row) if len(t["input_ids"]) <= limit]
            if not targets:
                counts["dropped_too_long"] += 1
                continue
            id = hash_text(row.text)
            counts["texts"] += 1
            counts["told"] += is_told(row)
            counts["reasoned"] += bool(row.reasoning)
            ids.extend([id] * len(targets))
            lowest[id] = row
            if len(lowest) > 2 * most + _GROUP:
                _keep_lowest(lowest, most)
            yield from targets

    data = store_rows(encode())
    _check(settings, counts, limit, objective.is_reasoned)
    # of the first round's labels, which are of the lowest ids, so that all rounds hold out the same
    first = counts["texts"] / (1 + len(read_rounds(storage)))
    _keep_lowest(lowest, min(most, int(first * _MAX_HELD_OUT)))
    # By id: workers write labels in any order, and the order of the rows is that of the training.
    order = np.argsort(pack_ids(ids), kind="stable")
    chosen = [int(i) for i in order if ids[i] not in lowest]
    numbers = {
        "labels": counts["texts"] - len(lowest),
        "held_out": len(lowest),
        "dropped_too_long": counts["dropped_too_long"],
    }
    if len(chosen) != numbers["labels"]:
        numbers["targets"] = len(chosen)
    return TrainSet(data.select(chosen), [lowest[id] for id in sorted(lowest)], numbers)


def _check(settings: Settings, counts: Counter[str], limit: int, is_reasoned: bool) -> None:
    """Raises an InputError without texts, a SettingsError if the targets need what none tells."""
    texts, told, bare = counts["texts"], counts["told"], counts["texts"] - counts["reasoned"]
    if not texts:
        raise InputError(
            f"all {counts['dropped_too_long']} labels are longer than {limit} tokens, of "
            f"DISTILL_STUDENT__MAX_TOKENS={settings.student.max_tokens} and the student's "
            "positions; raise it, or choose another student"
        )
    if is_reasoned and bare:
        log.warning(
            "train: %d of %d labels have no reasoning for the task's student.rationale", bare, texts
        )
    if settings.train.targets == "label" or told == texts:
        return
    name = f"DISTILL_TRAIN__TARGETS={settings.train.targets!r}"
    if not told:
        raise SettingsError(
            f"{name} needs labels with several samples or with log-probabilities, and these have "
            "neither: set DISTILL_LABEL__SAMPLES or DISTILL_TEACHER__LOGPROBS and label again, or "
            "set DISTILL_TRAIN__TARGETS=label"
        )
    log.warning("train: %d of %d labels do not tell shares, for %s", texts - told, texts, name)


def _keep_lowest(rows: dict[str, LabelRow], count: int) -> None:
    for id in sorted(rows)[count:]:
        del rows[id]


def store_rows(rows: Iterable[Encoded]) -> Dataset:
    """The rows as a data set that the disk holds, mapped into memory as it is needed."""
    rows = iter(rows)
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        schema = writer = None
        while group := list(islice(rows, _GROUP)):
            table = pa.Table.from_pylist(group, schema)
            if writer is None:
                schema = table.schema
                writer = pa.ipc.new_stream(file, schema)
            writer.write_table(table)
        if writer is None:
            return Dataset.from_list([])
        writer.close()
        file.flush()
        return Dataset.from_file(file.name)  # the mapping outlives the name


def fingerprint_labels(manifest: Manifest[Any]) -> str:
    """A hash of the labels' fingerprint and counts."""
    first = {name: find_default(name) for name in _FIRST_SETTINGS}
    return hash_content([{**first, **manifest.fingerprint}, manifest.counts])


def iterate_labels(storage: RunStorage, files: Sequence[str]) -> Iterator[LabelRow]:
    """The rows with status ok. Raises an InputError if there is none."""
    known = {f.name for f in fields(LabelRow)}
    kinds: Counter[str] = Counter()
    for name in files:
        table = storage.read_table(name, LABEL_SCHEMA)
        table = table.select([column for column in table.column_names if column in known])
        for batch in table.to_batches(_GROUP):
            for row in batch.to_pylist():
                kinds[f"{row['status']} ({row['error']})"] += 1
                if row["status"] == "ok":
                    yield LabelRow(**row)
    if "ok (None)" not in kinds:
        reasons = ", ".join(f"{count} {reason}" for reason, count in kinds.most_common(3))
        raise InputError(
            f"{storage.url}/labels: none of its {kinds.total()} rows has status ok: {reasons}; "
            "read their column response, change the task's [label_rules], delete the folder "
            "labels, and run python -m jobs.label again"
        )
