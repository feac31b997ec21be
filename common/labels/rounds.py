"""Which examples a round of labelling has."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.data.examples import Examples, load_examples, pack_ids
from common.errors import InputError
from common.run.manifest import Fingerprint, check_same, read_manifest, remove_manifest
from common.run.rounds import FOLDER, Round, read_rounds
from common.run.run import Run
from common.run.steps import ADAPTER, CURVE, LABELS, MERGED
from common.run.storage import RunStorage
from common.teacher.requests import fingerprint_teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """What all rounds choose from: the source's texts, and how many of them are labelled."""

    everything: Examples
    budget: int
    rounds: list[Round]
    made_from: Fingerprint

    @property
    def mark(self) -> NDArray[np.bool_]:
        """A mask of the first round's texts, those of the lowest ids, and of the chosen ones."""
        mask = np.zeros(len(self.everything), bool)
        first = size_round(self.budget, self.made_from["label.rounds"], 1)
        mask[np.argsort(self.everything.ids)[:first]] = True
        places = self.everything.find(pack_ids([id for r in self.rounds for id in r.chosen]))
        mask[places[places >= 0]] = True
        return mask

    @property
    def others(self) -> Examples:
        """The texts that no round up to now has."""
        return self.everything.select(~self.mark)

    @property
    def next_size(self) -> int:
        """How many texts the round after the present one adds."""
        total, number = self.made_from["label.rounds"], len(self.rounds) + 1
        sizes = [size_round(self.budget, total, n) for n in (number, number + 1)]
        return sizes[1] - sizes[0]


def load_round(run: Run) -> Examples:
    """The examples to label: all within the limit, or those of the rounds up to the present one.

    Raises:
        InputError: see `load_examples` and `load_pool`.
    """
    total = run.settings.label.rounds
    if total == 1:
        return load_examples(run.settings, run.task)
    pool = load_pool(run)
    if (number := len(pool.rounds) + 1) < total:
        log.info("labels: round %d of %d; python -m jobs.pipeline goes on", number, total)
    return pool.everything.select(pool.mark)


def load_pool(run: Run) -> Pool:
    """What the rounds choose from.

    Raises:
        InputError: see `load_examples`; or there are more rounds than examples; or the finished
            rounds are of other texts, another teacher or another number of rounds.
    """
    settings, total = run.settings, run.settings.label.rounds
    data = settings.data.model_copy(update={"train_limit": 0})
    everything = load_examples(settings.model_copy(update={"data": data}), run.task)
    budget = min(settings.data.train_limit or len(everything), len(everything))
    if budget < total:
        raise InputError(
            f"DISTILL_LABEL__ROUNDS={total} is more than the {budget} examples to label; lower it, "
            "or raise DISTILL_DATA__TRAIN_LIMIT"
        )
    made_from = {
        "label.rounds": total,
        "data.train_limit": budget,
        "texts": f"{len(everything)} of {everything.hash_ids()}",
        **fingerprint_teacher(settings, run.task),
    }
    rounds = read_rounds(run.storage)
    for each in rounds:
        check_same(f"{run.storage.url}/{FOLDER}", each.made_from, made_from)
    return Pool(everything, budget, rounds, made_from)


def size_round(budget: int, rounds: int, number: int) -> int:
    """How many texts are labelled after a round."""
    return -(-budget * number // rounds)


def starts_round(run: Run, examples: str) -> bool:
    """Whether the labels are those of the round before the one with these `examples`."""
    if run.settings.label.rounds == 1:
        return False
    labels, rounds = read_manifest(run.storage, LABELS), read_rounds(run.storage)
    found = labels.fingerprint.get("examples") if labels else None
    return bool(rounds) and found == rounds[-1].examples != examples


def forget_round(storage: RunStorage) -> None:
    """Removes the manifests of the round before; what it was made of stays."""
    for step in (CURVE, MERGED, ADAPTER, LABELS):  # the labels' last: they say that this is due
        remove_manifest(storage, step)
