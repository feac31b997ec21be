"""Trainings on parts of the labels, for the learning curve."""

import gc
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from common.run.manifest import Fingerprint, require_manifest, write_manifest
from common.run.run import Run
from common.run.steps import ADAPTER, CURVE
from common.training.agreement import make_measure
from common.training.objectives.objective import Objective
from common.training.train_set import TrainSet
from common.training.trainer import make_trainer

_PARTS = (8, 4, 2)
_LEAST = 16
"""Fewer labels teach nothing that could be measured."""

log = logging.getLogger(__name__)


class _Checks(TrainerCallback):
    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """May raise, which ends the training."""
        self._check()


def measure_curve(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    data: TrainSet,
    fingerprint: Fingerprint,
    check: Callable[[], None],
) -> None:
    """Trains on an eighth, a quarter and a half of the labels, and writes <root>/<run>/curve.

    What is measured is kept at once, so that a rerun goes on with the next part. The agreement is
    that of the last update. `check` may raise.
    """
    adapter = require_manifest(run.storage, ADAPTER)
    points = []
    for part in _PARTS:
        count, labels = len(data.labels) // part, data.counts["labels"] // part
        name = f"{CURVE.folder}/{part}.json"
        if not data.held_out or labels < _LEAST:
            continue
        found = run.storage.read_json(name) if run.storage.exists(name) else {}
        if found.get("fingerprint") != fingerprint:
            log.info("train: %d labels, for the learning curve", labels)
            part_data = TrainSet(data.labels.select(range(count)), data.held_out, data.counts)
            agreement = _train_on(run, tokenizer, objective, part_data, check)
            found = {"fingerprint": fingerprint, "agreement": agreement}
            run.storage.write_json(name, found)
        points.append((labels, float(found["agreement"])))
    if (whole := adapter.summary.get("agreement")) is not None:
        points.append((data.counts["labels"], whole))
    write_manifest(
        run.storage, CURVE, fingerprint, {"points": points, "held_out": len(data.held_out)}
    )
    line = ", ".join(f"{share:.1%} with {labels}" for labels, share in points)
    log.info("train: agreement by labels: %s", line)


def _train_on(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    data: TrainSet,
    check: Callable[[], None],
) -> float:
    """The agreement of a student that learns from these labels."""
    set_seed(run.settings.train.seed)
    measure = make_measure(run, tokenizer, objective, data.held_out, check)
    assert measure is not None
    gc.collect()  # frees the trainer before, a reference cycle
    with tempfile.TemporaryDirectory() as name:
        trainer = make_trainer(
            run.settings, tokenizer, objective, data.labels, Path(name), callbacks=[_Checks(check)]
        )
        trainer.train()
        return measure(trainer.model)["agreement"]
