"""Fine-tunes the student on the labels with QLoRA: `python -m jobs.train`.

NF4 base weights, a LoRA adapter in fp32, loss on the label's tokens only. Some labels are held
out; the checkpoint that agrees best with the teacher on them is the result. Reads
<root>/<run>/labels and writes <root>/<run>/adapter; on the way <root>/<run>/checkpoints, from
which a rerun goes on exactly.
"""

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from common.command import run_job
from common.run.lock import RunLock, hold_run
from common.run.manifest import (
    Fingerprint,
    is_done,
    require_manifest,
    write_manifest,
)
from common.run.storage import RunStorage
from common.settings import Settings
from common.signals import noting_signals
from common.student.adapter import STEP, write_adapter
from common.student.memory import describe_memory, explaining_memory
from common.student.student import check_device, fingerprint_student, load_tokenizer
from common.tasks.model import Task, load_task
from common.training.agreement import make_measure
from common.training.checkpoints import Checkpoints
from common.training.merging import STEP as MERGED
from common.training.merging import merge
from common.training.model_card import render_card
from common.training.publishing import push
from common.training.schedule import Schedule, find_best
from common.training.train_set import fingerprint_labels, load_train_set
from common.training.trainer import LabelTrainer, make_trainer

SECTIONS = ("run", "task", "storage", "student", "train", "evaluate")
_NO_RESULT = {
    "preset",  # its values count
    "gradient_checkpointing",
    "checkpoint_seconds",
    "report_to",
    "merge",
    "push_to",
}
"""Settings that do not change what is learned."""

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Trains one adapter, and merges and publishes it if asked to.

    Raises:
        InputError: there are no finished labels, none is usable, or the student is not there.
        SettingsError: there is no GPU, or too little memory; or the loss is no finite number any
            more.
    """
    check_device(settings)
    storage, task = RunStorage(settings), load_task(settings.task)
    labels = require_manifest(storage, "labels", "python -m jobs.label")
    fingerprint = make_fingerprint(settings, task, labels)
    with hold_run(storage, "train") as lock:
        if is_done(storage, STEP, fingerprint):
            Checkpoints(storage, fingerprint).remove_all()  # if it was killed in its last moment
            log.info("train: already done, see %s/%s", storage.url, STEP)
        else:
            train(settings, task, storage, labels, fingerprint, lock)
        if settings.train.merge and not is_done(storage, MERGED, fingerprint):
            merge(settings, task, storage, labels, fingerprint)
        if settings.train.push_to:
            push(settings, storage)


def train(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    labels: dict[str, Any],
    fingerprint: Fingerprint,
    lock: RunLock,
) -> None:
    """Trains, from the latest checkpoint if there is one, and writes the best adapter.

    `labels` is their manifest; `fingerprint` says what the adapter depends on.
    """
    started = time.monotonic()
    checkpoints = Checkpoints(storage, fingerprint)
    tokenizer = load_tokenizer(settings)
    data = load_train_set(settings, task, storage, labels["files"], tokenizer)
    log.info("train: %s", ", ".join(f"{n} {name}" for name, n in data.counts.items()))
    set_seed(settings.train.seed)
    with tempfile.TemporaryDirectory() as name, noting_signals() as signals:
        folder = Path(name)

        def check() -> None:
            signals.check()
            lock.check()

        with explaining_memory(describe_memory(settings)):
            measure = make_measure(settings, task, tokenizer, data.held_out, signals.check)
            trainer = make_trainer(settings, tokenizer, data.labels, folder, measure)
            Schedule(settings.train, checkpoints, signals, check).run(trainer, folder)
        signals.check()
        history = trainer.state.log_history
        best = find_best(history) or trainer.state.global_step
        checkpoints.load(best, folder / "best")
        summary = summarize(trainer, best) | {"seconds": round(time.monotonic() - started, 1)}
        card = render_card(settings, task, labels, data.counts, summary)
        written = write_adapter(folder, folder / "best", tokenizer, card, history)
        files = storage.upload(written, STEP)
    lock.check()
    write_manifest(
        storage,
        STEP,
        fingerprint,
        files=files,
        counts=data.counts,
        settings=settings.model_dump(mode="json", include={"student", "train"}),
        summary=summary,
    )
    checkpoints.remove_all()
    line = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in summary.items())
    log.info("train: %s; see %s/%s", line, storage.url, STEP, extra={"figures": summary})


def summarize(trainer: LabelTrainer, best: int) -> dict[str, Any]:
    """What came out; `best` is the update whose weights are kept."""
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


def make_fingerprint(settings: Settings, task: Task, labels: dict[str, Any]) -> Fingerprint:
    """What the adapter depends on."""
    values = settings.train.model_dump(mode="json", exclude=_NO_RESULT)
    return {
        "labels": fingerprint_labels(labels),
        **fingerprint_student(settings, task),
        **{f"train.{key}": value for key, value in values.items()},
    }


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
