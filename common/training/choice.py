"""Which texts to label next: those of which the student is least sure."""

import gc
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from common.data.examples import Examples
from common.run.manifest import Fingerprint, require_manifest
from common.run.rounds import Round
from common.run.run import Run
from common.run.steps import ADAPTER, LABELS
from common.student.student import open_student

CANDIDATES = 5
"""The student answers so many times as many texts as it chooses."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def finish_round(run: Run, made_from: Fingerprint) -> Round:
    """What the present round has brought, with nothing chosen yet."""
    labels, adapter = require_manifest(run.storage, LABELS), require_manifest(run.storage, ADAPTER)
    return Round(
        dict(made_from),
        str(labels.fingerprint["examples"]),
        adapter.counts["labels"],
        adapter.counts["held_out"],
        adapter.summary.get("agreement"),
        chosen=[],
    )


def choose_texts(run: Run, others: Examples, count: int) -> list[str]:
    """The ids of the texts of which the student is least sure, among the first ones by id."""
    lowest = np.zeros(len(others), bool)
    lowest[np.argsort(others.ids)[: CANDIDATES * count]] = True
    candidates = others.select(lowest)
    log.info("rounds: the student answers %d texts, to choose %d", len(candidates), count)
    adapter = require_manifest(run.storage, ADAPTER)
    found: dict[str, float] = {}
    gc.collect()  # frees the trainer, a reference cycle
    with tempfile.TemporaryDirectory() as folder:
        run.storage.download(adapter.files, ADAPTER.folder, Path(folder))
        student = open_student(run.settings, run.task, Path(folder))
        for group in candidates.read():
            texts = [row for row in group if row.text.strip()]
            responses = student.answer([row.text for row in texts])
            for row, response in zip(texts, responses, strict=True):
                # none: the text is too long for the student, which cannot learn from it either
                found[row.id] = response.least_logprob or 0.0
    ids = sorted(found)
    return sorted(pick_unsure(ids, [found[id] for id in ids], count, run.settings.train.seed))


def pick_unsure(candidates: Sequence[T], sure: Sequence[float], count: int, seed: int) -> list[T]:
    """Some of the least sure ones, each with a probability that falls with its rank.

    Without chance the choice is of one kind: a batch of the very least sure texts repeats itself.

    Args:
        candidates: texts, or their ids.
        sure: the log-probability of the least likely token of each answer.
        count: how many to pick.
        seed: of the choice.

    Source: A. Kirsch et al., Stochastic Batch Acquisition: A Simple Baseline for Deep Active
    Learning (TMLR 2023), softrank acquisition.
    """
    ranks = np.empty(len(candidates))
    ranks[np.argsort(sure, kind="stable")] = np.arange(1, len(candidates) + 1)
    keys = np.random.default_rng(seed).gumbel(size=len(candidates)) - np.log(ranks)
    return [candidates[i] for i in np.argsort(-keys, kind="stable")[:count]]
