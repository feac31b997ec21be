"""Which texts to label next: those of which the student is least sure."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.examples import Examples
from common.records import Example
from common.run.manifest import require_manifest
from common.run.rounds import Round
from common.run.run import Run
from common.run.steps import ADAPTER, LABELS
from common.student.student import open_student

CANDIDATES = 5
"""The student answers so many times as many texts as it chooses."""

log = logging.getLogger(__name__)


def finish_round(run: Run, others: Examples, count: int) -> Round:
    """What the round has brought, and `count` of the `others` to label next."""
    labels, adapter = require_manifest(run.storage, LABELS), require_manifest(run.storage, ADAPTER)
    chosen = choose_texts(run, others, count) if count else []
    return Round(
        str(labels.fingerprint["examples"]),
        adapter.counts["labels"],
        adapter.counts["held_out"],
        adapter.summary.get("agreement"),
        chosen,
    )


def choose_texts(run: Run, others: Examples, count: int) -> list[str]:
    """The ids of the texts of which the student is least sure, among the first ones by id."""
    lowest = np.zeros(len(others), bool)
    lowest[np.argsort(others.ids)[: CANDIDATES * count]] = True
    candidates = [row for group in others.select(lowest).read() for row in group]
    candidates = sorted((row for row in candidates if row.text.strip()), key=lambda row: row.id)
    log.info("rounds: the student answers %d texts, to choose %d", len(candidates), count)
    adapter = require_manifest(run.storage, ADAPTER)
    with tempfile.TemporaryDirectory() as folder:
        run.storage.download(adapter.files, ADAPTER.folder, Path(folder))
        student = open_student(run.settings, run.task, Path(folder))
        responses = student.answer([row.text for row in candidates])
    # no probability: the text is too long for the student, which cannot learn from it either
    sure = [0.0 if r.least_logprob is None else r.least_logprob for r in responses]
    return sorted(row.id for row in pick_unsure(candidates, sure, count, run.settings.train.seed))


def pick_unsure(
    candidates: Sequence[Example], sure: Sequence[float], count: int, seed: int
) -> list[Example]:
    """Some of the least sure ones, each with a probability that falls with its rank.

    Without chance the choice is of one kind: a batch of the very least sure texts repeats itself.

    Args:
        candidates: the texts.
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
