"""Trainings on parts of the labels: for the learning curve, and to find a learning rate.

What they measure is kept on storage at once, so that a rerun goes on with the next one.
"""

import gc
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from typing_extensions import TypedDict

from common.run.manifest import Fingerprint, write_manifest
from common.run.run import Run
from common.run.steps import CURVE
from common.settings import Settings
from common.student.adapter import read_history
from common.training.agreement import make_measure
from common.training.objectives.objective import Objective
from common.training.train_set import TrainSet
from common.training.trainer import make_trainer

_CURVE_PARTS = (8, 4, 2)
_RATES = (0.4, 1.0, 2.5)
"""The learning rates to try, by that of the student's width."""
_TRIAL_PART, _TRIAL_EPOCHS = 10, 2 / 3
"""A trial has a tenth of the labels, for that share of the epochs; three take a fifth of a run."""
_LEAST = 16
"""Fewer labels teach nothing that could be measured."""
_TRIALS = "trials"
_CHOSEN = f"{_TRIALS}/chosen.json"

log = logging.getLogger(__name__)


class _Measured(TypedDict):
    fingerprint: dict[str, Any]
    agreement: float
    loss: float


class _Chosen(TypedDict):
    fingerprint: dict[str, Any]
    learning_rate: float


@dataclass(frozen=True)
class Subsets:
    """Trains on parts of the labels, and measures on the held-out ones.

    `fingerprint` is what the whole training depends on; `check` is called at each update, and may
    raise.
    """

    run: Run
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    data: TrainSet
    fingerprint: Fingerprint
    check: Callable[[], None]

    def draw_curve(self) -> None:
        """Trains on an eighth, a quarter and a half of the labels, and writes <root>/<run>/curve.

        The agreement is that of the last update, also of the whole training.
        """
        storage, labels = self.run.storage, self.data.counts["labels"]
        points = []
        for part in _CURVE_PARTS if self.data.held_out else ():
            if labels // part >= _LEAST:
                found = self._measure(f"{CURVE.folder}/{part}.json", part)
                points.append((labels // part, found["agreement"]))
        measured = [e["eval_agreement"] for e in read_history(storage) if "eval_agreement" in e]
        points += [(labels, whole) for whole in measured[-1:]]
        write_manifest(
            storage,
            CURVE,
            self.fingerprint,
            {"points": points, "held_out": len(self.data.held_out)},
        )
        line = ", ".join(f"{share:.1%} with {count}" for count, share in points)
        log.info("train: agreement by labels: %s", line)

    def find_rate(self) -> float:
        """The learning rate with the best agreement after a training on a tenth of the labels.

        Without held-out labels, or with too few labels, it is that of the settings.
        """
        usual = self.run.settings.train.learning_rate
        assert usual is not None
        if not self.data.held_out or self.data.counts["labels"] // _TRIAL_PART < _LEAST:
            log.warning("train: too few labels to try learning rates on; taking %g", usual)
            return usual
        found: dict[float, tuple[float, float]] = {}
        for rate in (float(f"{usual * factor:.2g}") for factor in _RATES):
            name = f"{_TRIALS}/{rate:g}.json"
            result = self._measure(name, _TRIAL_PART, _TRIAL_EPOCHS, learning_rate=rate)
            found[rate] = result["agreement"], -result["loss"]
            log.info("train: learning rate %g: agreement %.3f, loss %.3f", rate, *result.values())
        best = max(found, key=found.__getitem__)
        content = {"fingerprint": self.fingerprint, "learning_rate": best}
        self.run.storage.write_json(_CHOSEN, content)
        return best

    def _measure(
        self, name: str, part: int, epochs: float = 1.0, **changes: Any
    ) -> dict[str, float]:
        """Agreement and loss after a training on one `part`-th of the labels; kept in a file.

        `epochs` is a share of the setting. The warm-up is as long a share of the updates as in the
        whole training: otherwise a short one would not reach its learning rate.
        """
        storage = self.run.storage
        found = storage.read_json(name, _Measured) if storage.exists(name) else {}
        if found.get("fingerprint") != self.fingerprint:
            labels = self.data.labels.select(range(len(self.data.labels) // part))
            log.info("train: a training on %d of %d rows", len(labels), len(self.data.labels))
            train = self.run.settings.train
            changes |= {
                "epochs": train.epochs * epochs,
                "warmup_steps": round(train.warmup_steps * epochs / part),
                "report_to": [],
            }
            own = {"train": train.model_copy(update=changes)}
            settings = self.run.settings.model_copy(update=own)
            found = {"fingerprint": self.fingerprint} | self._train(settings, labels)
            storage.write_json(name, found)
        return {key: float(found[key]) for key in ("agreement", "loss")}

    def _train(self, settings: Settings, labels: Dataset) -> dict[str, float]:
        set_seed(settings.train.seed)
        tokenizer, objective = self.tokenizer, self.objective
        measure = make_measure(self.run, tokenizer, objective, self.data.held_out, self.check)
        assert measure is not None
        gc.collect()  # frees the trainer before, a reference cycle
        with tempfile.TemporaryDirectory() as name:
            checks = [_Checks(self.check)]
            trainer = make_trainer(
                settings, tokenizer, objective, labels, Path(name), callbacks=checks
            )
            trainer.train()
            return measure(trainer.model)


class _Checks(TrainerCallback):
    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """May raise, which ends the training."""
        self._check()


def read_rate(run: Run, fingerprint: Fingerprint) -> float | None:
    """The learning rate that earlier trials have found, if any."""
    found = run.storage.read_json(_CHOSEN, _Chosen) if run.storage.exists(_CHOSEN) else {}
    return found["learning_rate"] if found.get("fingerprint") == fingerprint else None
