"""Fine-tunes the student on the labels with QLoRA: `python -m jobs.train`.

NF4 base weights, a LoRA adapter in fp32, loss on the label's tokens only. The checkpoint that
agrees best with the teacher on held-out labels is the result. Reads <root>/<run>/labels and writes
<root>/<run>/adapter, and merged and gguf if the settings ask for them. Resuming from
<root>/<run>/checkpoints gives the same weights.
"""

import gc
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from common.command import run_job
from common.errors import SettingsError
from common.run.lock import RunLock, hold_run
from common.run.manifest import Fingerprint, Manifest, is_done, require_manifest, write_manifest
from common.run.run import Run, open_run
from common.run.steps import ADAPTER, CURVE, GGUF, LABELS, MERGED, LabelSummary, TrainSummary
from common.settings import Settings
from common.signals import deferring_signals
from common.student.adapter import write_adapter
from common.student.frame import write_task_template
from common.student.memory import advise_on_memory, explaining_memory
from common.student.prompt import fingerprint_student, load_tokenizer
from common.student.source import check_source
from common.student.weights import check_device
from common.tasks.task import Task
from common.training.agreement import make_measure
from common.training.checkpoints import Checkpoints
from common.training.export import check_exports, export_gguf, merge
from common.training.lora import settle_rate
from common.training.model_card import render_card
from common.training.objectives.supervised import Supervised
from common.training.objectives.top_tokens import TopTokens
from common.training.publish import push
from common.training.schedule import Schedule, find_best
from common.training.subsets import Subsets, read_rate
from common.training.train_set import fingerprint_labels, load_train_set
from common.training.trainer import LabelTrainer, make_trainer

SECTIONS = ("run", "task", "storage", "student", "train", "evaluate")
_WITHOUT_EFFECT = {
    "gradient_checkpointing",
    "curve",
    "checkpoint_seconds",
    "report_to",
    "export",
    "merge",
    "push_to",
}
"""Settings that do not change the weights."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Trains one adapter; exports and publishes it if the settings ask for it.

    Raises:
        InputError: the labels are unfinished or unusable, or the student is missing.
        SettingsError: no GPU can be used, memory is too small, or the loss is NaN or infinite.
    """
    check_device(settings)
    run = open_run(settings)
    storage, labels = run.storage, require_manifest(run.storage, LABELS)
    check_source(settings)
    run = replace(run, settings=settle_rate(settings))
    tokenizer = load_tokenizer(settings)
    check_exports(settings, run.task)
    with hold_run(storage, "train") as lock:
        fingerprint = make_fingerprint(run, labels, tokenizer)
        if settings.train.preset == "auto" and settings.train.learning_rate is None:
            rate = read_rate(run, fingerprint)
            if rate is None:
                rate = on_subsets(run, labels, tokenizer, fingerprint, lock, Subsets.find_rate)
            run = replace(run, settings=settle_rate(settings, rate))
            fingerprint = make_fingerprint(run, labels, tokenizer)
        if is_done(storage, ADAPTER, fingerprint):
            Checkpoints(storage, fingerprint).remove_all()  # left if the last job was killed
            log.info("train: already done, see %s/%s", storage.url, ADAPTER.folder)
        else:
            train(run, labels, tokenizer, fingerprint, lock)
        if settings.train.curve and not is_done(storage, CURVE, fingerprint):
            on_subsets(run, labels, tokenizer, fingerprint, lock, Subsets.draw_curve)
        exports = settings.train.exports
        if "merged" in exports and not is_done(storage, MERGED, fingerprint):
            merge(run, labels, fingerprint)
        if "gguf" in exports and not is_done(storage, GGUF, fingerprint):
            export_gguf(run, labels, fingerprint)
        if settings.train.push_to:
            push(run)


def train(
    run: Run,
    labels: Manifest[LabelSummary],
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: Fingerprint,
    lock: RunLock,
) -> None:
    """Trains, from the latest checkpoint if any, and writes the best adapter."""
    started = time.monotonic()
    settings, storage = run.settings, run.storage
    checkpoints = Checkpoints(storage, fingerprint)
    objective = make_objective(settings, run.task, tokenizer)
    data = load_train_set(settings, storage, labels.files, objective)
    log.info("train: %s", ", ".join(f"{n} {name}" for name, n in data.counts.items()))
    set_seed(settings.train.seed)
    gc.collect()  # frees the trainer of an earlier round or trial, a reference cycle
    with tempfile.TemporaryDirectory() as name, deferring_signals() as signals:
        folder = Path(name)

        def check() -> None:
            signals.check()
            lock.check()

        with explaining_memory(advise_on_memory(settings)):
            measure = make_measure(run, tokenizer, objective, data.held_out, signals.check)
            trainer = make_trainer(settings, tokenizer, objective, data.labels, folder, measure)
            Schedule(settings.train, checkpoints, signals, check).run(trainer, folder)
        signals.check()
        history = trainer.state.log_history
        best = find_best(history) or trainer.state.global_step
        checkpoints.load(best, folder / "best")
        summary = summarize(trainer, best)
        summary["seconds"] = round(time.monotonic() - started, 1)
        card = render_card(run, labels, data.counts, summary)
        written = write_adapter(folder, folder / "best", tokenizer, card, history)
        write_task_template(written, tokenizer, run.task)
        files = storage.upload(written, ADAPTER.folder)
    lock.check()
    described = settings.describe(("student", "train"))
    write_manifest(
        storage, ADAPTER, fingerprint, summary, files=files, counts=data.counts, settings=described
    )
    checkpoints.remove_all()
    line = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in summary.items())
    log.info("train: %s; see %s/%s", line, storage.url, ADAPTER.folder, extra={"figures": summary})


def on_subsets(
    run: Run,
    labels: Manifest[LabelSummary],
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: Fingerprint,
    lock: RunLock,
    measure: Callable[[Subsets], Result],
) -> Result:
    """What a method of `Subsets` finds out by trainings on parts of the labels."""
    objective = make_objective(run.settings, run.task, tokenizer)
    data = load_train_set(run.settings, run.storage, labels.files, objective)
    with deferring_signals() as signals, explaining_memory(advise_on_memory(run.settings)):

        def check() -> None:
            signals.check()
            lock.check()

        return measure(Subsets(run, tokenizer, objective, data, fingerprint, check))


def make_objective(
    settings: Settings, task: Task, tokenizer: PreTrainedTokenizerBase
) -> Supervised:
    """What the training minimises. Raises a SettingsError if the task does not go with it."""
    train = settings.train
    if train.targets == "tokens":
        if task.student.rationale:
            raise SettingsError(
                "DISTILL_TRAIN__TARGETS=tokens cannot be learned beside a rationale; choose other "
                f"targets, or take student.rationale out of the task {task.name!r}"
            )
        return TopTokens(task, tokenizer)
    return Supervised(task, tokenizer, train.targets, train.edit_weight)


def summarize(trainer: LabelTrainer, best: int) -> TrainSummary:
    """The manifest's summary; `best` is the update whose weights are kept."""
    on_gpu, history = torch.cuda.is_available(), trainer.state.log_history
    measured = [entry for entry in history if "eval_agreement" in entry]
    agreements = {entry["step"]: entry["eval_agreement"] for entry in measured}
    return {
        "trainable_parameters": sum(p.numel() for p in trainer.list_trained()),
        "updates": trainer.state.global_step,
        "best_update": best,
        "agreement": agreements.get(best),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
    }


def make_fingerprint(
    run: Run, labels: Manifest[LabelSummary], tokenizer: PreTrainedTokenizerBase
) -> Fingerprint:
    """What the adapter depends on."""
    return {
        "labels": fingerprint_labels(labels),
        **fingerprint_student(run.settings, run.task, tokenizer),
        **run.settings.fingerprint(
            "train", exclude=_WITHOUT_EFFECT | {"preset"}
        ),  # its values count
    }


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
