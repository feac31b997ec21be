"""Which examples a round of labelling has."""

import logging

import numpy as np
from numpy.typing import NDArray

from common.data.examples import Examples, load_examples, pack_ids
from common.errors import InputError
from common.run.manifest import read_manifest
from common.run.rounds import read_rounds
from common.run.run import Run
from common.run.steps import ADAPTER, LABELS, MERGED
from common.run.storage import RunStorage

log = logging.getLogger(__name__)


def load_round(run: Run) -> Examples:
    """The examples to label: all within the limit, or those of the rounds up to the present one.

    Raises:
        InputError: see `load_examples`; or there are more rounds than examples.
    """
    total = run.settings.label.rounds
    if total == 1:
        return load_examples(run.settings, run.task)
    everything, budget = _load_all(run)
    if budget < total:
        raise InputError(
            f"DISTILL_LABEL__ROUNDS={total} is more than the {budget} examples to label; lower it, "
            "or raise DISTILL_DATA__TRAIN_LIMIT"
        )
    number = min(len(read_rounds(run.storage)) + 1, total)
    log.info("labels: round %d of %d; python -m jobs.pipeline goes through all", number, total)
    return everything.select(_mark(run, everything, budget))


def load_others(run: Run) -> tuple[int, Examples]:
    """How many texts all rounds label, and the examples that no round up to now has."""
    everything, budget = _load_all(run)
    return budget, everything.select(~_mark(run, everything, budget))


def _load_all(run: Run) -> tuple[Examples, int]:
    data = run.settings.data.model_copy(update={"train_limit": 0})
    everything = load_examples(run.settings.model_copy(update={"data": data}), run.task)
    return everything, min(run.settings.data.train_limit or len(everything), len(everything))


def _mark(run: Run, everything: Examples, budget: int) -> NDArray[np.bool_]:
    """A mask of the first round's examples, those of the lowest ids, and of the chosen ones."""
    mask = np.zeros(len(everything), bool)
    mask[np.argsort(everything.ids)[: size_round(budget, run.settings.label.rounds, 1)]] = True
    chosen = [id for each in read_rounds(run.storage) for id in each.chosen]
    places = everything.find(pack_ids(chosen))
    mask[places[places >= 0]] = True
    return mask


def size_round(budget: int, rounds: int, number: int) -> int:
    """How many texts are labelled after a round."""
    return -(-budget * number // rounds)


def forget_round(storage: RunStorage, examples: str) -> None:
    """Removes the manifests of the round before, unless it is the one with these `examples`."""
    labels, rounds = read_manifest(storage, LABELS), read_rounds(storage)
    if labels is None or not rounds:
        return
    found = labels.fingerprint.get("examples")
    if found != examples and found in {each.examples for each in rounds}:
        for step in (MERGED, ADAPTER, LABELS):  # the labels' last: it says what is to be removed
            storage.remove(f"{step.folder}/manifest.json")
