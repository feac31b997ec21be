"""When training evaluates, saves and stops, and which checkpoint is the best."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from common.sections import TrainSettings
from common.signals import DeferredSignals
from common.training.checkpoints import Checkpoints
from common.training.trainer import LOG_UPDATES, LabelTrainer

_LOG_SECONDS = 10.0

log = logging.getLogger(__name__)


class Schedule(TrainerCallback):
    """Evaluates, saves, stops and logs at the right updates."""

    def __init__(
        self,
        train: TrainSettings,
        checkpoints: Checkpoints,
        signals: DeferredSignals,
        check: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A received signal saves a checkpoint and stops; `check` is called then, and may raise."""
        self._train, self._checkpoints, self._check = train, checkpoints, check
        self._signals, self._clock = signals, clock
        self._saved_at = self._logged_at = clock()

    def run(self, trainer: LabelTrainer, folder: Path) -> None:
        """Trains, from the latest checkpoint if any, which is downloaded into `folder`."""
        self._trainer = trainer
        trainer.add_callback(self)
        latest = self._checkpoints.load_latest(folder)
        if latest is None:
            trainer.train()
        elif not self._catch_up(latest):
            trainer.train(resume_from_checkpoint=str(latest))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves when an evaluation or a checkpoint is due, at the end, and at a signal."""
        if self._signals.received:
            control.should_save = control.should_training_stop = True
        is_due = self._clock() - self._saved_at >= self._train.checkpoint_seconds
        if is_due or self._is_evaluation_due() or state.global_step >= state.max_steps:
            control.should_save = True
        if control.should_save or state.global_step % LOG_UPDATES == 0:
            self._trainer.check_finite()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Uploads the checkpoint, then evaluates if due: a signal may end a long evaluation."""
        update = state.global_step
        folder = Path(args.output_dir) / f"checkpoint-{update}"
        self._checkpoints.save(folder, update, find_best(state.log_history) or update)
        shutil.rmtree(folder)
        self._saved_at = self._clock()
        self._check()
        if self._is_evaluation_due():
            self._trainer.evaluate()
        if stops_early(self._train, state.log_history):
            log.info("train: early stopping, %d evaluations below the best", self._train.patience)
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Logs a line for each evaluation, and at most every 10 seconds for the loss."""
        entry = logs or {}
        if "eval_agreement" not in entry:
            if "loss" not in entry or self._clock() - self._logged_at < _LOG_SECONDS:
                return
            self._logged_at = self._clock()
        names = ("loss", "learning_rate", "tokens_per_second", "eval_agreement", "eval_loss")
        figures = {name: entry[name] for name in names if name in entry}
        line = ", ".join(f"{n.replace('_', ' ')} {v:.3g}" for n, v in figures.items())
        log.info(
            "train: update %d of %d, %s",
            state.global_step,
            state.max_steps,
            line,
            extra={"figures": {"update": state.global_step, "of": state.max_steps, **figures}},
        )

    def _catch_up(self, checkpoint: Path) -> bool:
        """Loads a checkpoint's state, and evaluates if due; whether training is complete."""
        path = checkpoint / "trainer_state.json"
        self._trainer.state = state = TrainerState.load_from_json(str(path))
        if self._is_evaluation_due():
            self._trainer.load_weights(checkpoint)
            self._trainer.evaluate()
            state.save_to_json(str(path))
        return state.global_step >= state.max_steps or stops_early(self._train, state.log_history)

    def _is_evaluation_due(self) -> bool:
        """Whether this update has an evaluation that is not in the history."""
        state = self._trainer.state
        return (
            self._trainer.measure is not None
            and state.global_step in list_evaluations(self._train, state.max_steps)
            and state.global_step not in _list_measured(state.log_history)
        )


def list_evaluations(train: TrainSettings, updates: int) -> list[int]:
    """The updates with an evaluation after them, evenly spaced, with the last."""
    count = min(train.evaluations, updates)
    return sorted({math.ceil(updates * (i + 1) / count) for i in range(count)})


def stops_early(train: TrainSettings, history: Sequence[dict[str, Any]]) -> bool:
    """Whether the last `patience` evaluations are worse than the best by more than chance."""
    measured = _list_measured(history)
    if not train.patience or not measured:
        return False
    return len(measured) - 1 - measured.index(find_best(history)) >= train.patience


def find_best(history: Sequence[dict[str, Any]]) -> int:
    """The latest update whose agreement is within a standard error of the highest; 0 without any.

    The highest of several is so by chance, too: an earlier checkpoint, whose learning rate has not
    fallen yet, is kept only for a clear gain. The figures: tests/benchmarks/RESULTS.md. Where the
    student agrees with hardly any label, as with long answers, it is that with the lowest loss.

    Source: the one-standard-error rule of L. Breiman et al., Classification and Regression Trees
    (1984), for the later checkpoint instead of the smaller tree.
    """
    measured = [entry for entry in history if "eval_agreement" in entry]
    if not measured:
        return 0
    highest = max(measured, key=lambda e: (e["eval_agreement"], -e["eval_loss"]))
    if not all("eval_agreement_error" in entry for entry in measured):
        return int(highest["step"])  # as earlier versions, which have kept only that one
    agreement, error = highest["eval_agreement"], highest["eval_agreement_error"]
    if agreement <= 2 * error:  # none but for chance
        return int(min(measured, key=lambda entry: entry["eval_loss"])["step"])
    good = [entry for entry in measured if entry["eval_agreement"] >= agreement - error]
    return int(good[-1]["step"])


def _list_measured(history: Sequence[dict[str, Any]]) -> list[int]:
    return [entry["step"] for entry in history if "eval_agreement" in entry]
