"""Fine-tunes the student on the labels with QLoRA: `python -m jobs.train`.

NF4 base weights, a LoRA adapter in fp32, loss on the label's tokens only. Some labels are held
out; the checkpoint that agrees best with the teacher on them is the result. Reads
<root>/<run>/labels and writes <root>/<run>/adapter; on the way <root>/<run>/checkpoints, from
which a rerun goes on exactly.
"""

import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from common.agreement import make_measure
from common.checkpoints import Checkpoints
from common.command import run_job
from common.lock import RunLock, hold_run
from common.manifest import (
    Fingerprint,
    hash_content,
    is_done,
    require_manifest,
    write_manifest,
)
from common.merging import STEP as MERGED
from common.merging import merge
from common.model_card import render_card
from common.publishing import push
from common.settings import Settings
from common.signals import noting_signals
from common.storage import RunStorage
from common.student import fingerprint_student, load_tokenizer
from common.tasks import Task, load_task
from common.train_set import drop_over_long, encode_labels, hold_out, read_labels
from common.training import (
    TENSORBOARD,
    Schedule,
    describe_memory,
    explaining_memory,
    find_best,
    make_trainer,
)

SECTIONS = ("run", "task", "storage", "student", "train", "evaluate")
STEP = "adapter"
HISTORY_FILE = f"{STEP}/history.jsonl"
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
        SettingsError: the memory does not suffice, or the loss is no finite number any more.
    """
    storage, task = RunStorage(settings), load_task(settings.task)
    labels_manifest = require_manifest(storage, "labels", "python -m jobs.label")
    fingerprint = make_fingerprint(settings, task, labels_manifest)
    if is_done(storage, STEP, fingerprint):
        Checkpoints(storage, fingerprint).remove_all()  # if it was killed in its last moment
        log.info("train: already done, see %s/%s", storage.url, STEP)
    else:
        with hold_run(storage, "train") as lock:
            train(settings, task, storage, labels_manifest, fingerprint, lock)
    if settings.train.merge and not is_done(storage, MERGED, fingerprint):
        merge(settings, task, storage, labels_manifest, fingerprint)
    if settings.train.push_to:
        push(settings, storage)


def train(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    labels_manifest: dict[str, Any],
    fingerprint: Fingerprint,
    lock: RunLock,
) -> None:
    """Trains, from the latest checkpoint if there is one, and writes the best adapter."""
    started = time.monotonic()
    checkpoints = Checkpoints(storage, fingerprint)
    tokenizer = load_tokenizer(settings)
    found = read_labels(storage, labels_manifest["files"])
    fitting = drop_over_long(settings, task, tokenizer, found)
    labels, held_out = hold_out(fitting, settings.train.held_out)
    dataset = encode_labels(task, tokenizer, labels)
    dropped = len(found) - len(fitting)
    counts = {"labels": len(dataset), "held_out": len(held_out), "dropped_too_long": dropped}
    log.info("train: %s", ", ".join(f"{value} {name}" for name, value in counts.items()))
    set_seed(settings.train.seed)
    with tempfile.TemporaryDirectory() as name, noting_signals() as signals:
        folder = Path(name)

        def check() -> None:
            signals.check()
            lock.check()

        schedule = Schedule(settings.train, checkpoints, signals, check)
        measure = None
        if held_out:
            measure = make_measure(settings, task, tokenizer, held_out, signals.check)
        with explaining_memory(describe_memory(settings)):
            trainer = make_trainer(settings, tokenizer, dataset, folder, measure, [schedule])
            schedule.trainer = trainer
            latest = checkpoints.load_latest(folder)
            if latest is None or not trainer.catch_up(settings.train, latest):
                trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
        signals.check()
        history = trainer.state.log_history
        best = find_best(history) or trainer.state.global_step
        checkpoints.load(best, folder / "best")
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        agreements = {h["step"]: h["eval_agreement"] for h in history if "eval_agreement" in h}
        summary = {
            "trainable_parameters": trainable,
            "updates": trainer.state.global_step,
            "best_update": best,
            "agreement": agreements.get(best),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            "seconds": round(time.monotonic() - started, 1),
        }
        card = render_card(settings, task, labels_manifest, counts, summary)
        files = write_adapter(storage, tokenizer, folder, card, history)
    lock.check()
    write_manifest(
        storage,
        STEP,
        fingerprint,
        files=files,
        counts=counts,
        settings=settings.model_dump(mode="json", include={"student", "train"}),
        summary=summary,
    )
    checkpoints.remove_all()
    line = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in summary.items())
    log.info("train: %s; see %s/%s", line, storage.url, STEP, extra={"figures": summary})


def write_adapter(
    storage: RunStorage,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: str,
    history: list[dict[str, Any]],
) -> list[str]:
    """Writes what is needed to use the best checkpoint, and how it came to be; gives the files."""
    target = folder / STEP
    target.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / "best" / name).rename(target / name)
    if (folder / TENSORBOARD).exists():
        (folder / TENSORBOARD).rename(target / TENSORBOARD)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(card, "utf-8")
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    (target / Path(HISTORY_FILE).name).write_text(lines, "utf-8")
    return storage.upload(target, STEP)


def make_fingerprint(
    settings: Settings, task: Task, labels_manifest: dict[str, Any]
) -> Fingerprint:
    """What the adapter depends on."""
    values = settings.train.model_dump(mode="json", exclude=_NO_RESULT)
    return {
        "labels": hash_content([labels_manifest[key] for key in ("fingerprint", "counts")]),
        **fingerprint_student(settings, task),
        **{f"train.{key}": value for key, value in values.items()},
    }


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
