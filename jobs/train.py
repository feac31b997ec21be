"""Fine-tunes the student on the labels with QLoRA: `python -m jobs.train`.

NF4 base weights, a LoRA adapter in fp32, loss on the label's tokens only. Reads <root>/<run>/labels
and writes <root>/<run>/adapter: the adapter, the tokenizer, the training history.
"""

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from common.command import run_job
from common.errors import InputError
from common.manifest import Fingerprint, hash_content, is_done, require_manifest, write_manifest
from common.settings import Settings
from common.storage import RunStorage
from common.student import (
    encode_example,
    fingerprint_student,
    load_tokenizer,
)
from common.tasks import Task, load_task
from common.training import make_trainer

SECTIONS = ("run", "task", "storage", "student", "train")
STEP = "adapter"

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Trains one adapter.

    Raises:
        InputError: there are no finished labels, none is usable, or the student is not there.
    """
    started = time.monotonic()
    storage, task = RunStorage(settings), load_task(settings.task)
    labels_manifest = require_manifest(storage, "labels", "python -m jobs.label")
    fingerprint = make_fingerprint(settings, task, labels_manifest)
    if is_done(storage, STEP, fingerprint):
        log.info("train: already done, see %s/%s", storage.url, STEP)
        return
    tokenizer = load_tokenizer(settings)
    labels = read_labels(storage, labels_manifest["files"])
    dataset, dropped = encode_labels(settings, task, tokenizer, labels)
    log.info("train: %d labels, %d dropped as too long", len(dataset), dropped)
    set_seed(settings.train.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(settings, tokenizer, dataset, folder)
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        trainer.train()
        seconds = round(time.monotonic() - started, 1)
        trainer.model.save_pretrained(f"{folder}/adapter", save_embedding_layers=False)
        tokenizer.save_pretrained(f"{folder}/adapter")
        files = storage.upload(Path(folder) / "adapter", STEP)
    storage.write_json(f"{STEP}/history.json", trainer.state.log_history)
    write_manifest(
        storage,
        STEP,
        fingerprint,
        files=files,
        counts={"labels": len(dataset), "dropped_too_long": dropped},
        settings=settings.model_dump(mode="json", include={"student", "train"}),
        summary={
            "trainable_parameters": trainable,
            "updates": trainer.state.global_step,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            "seconds": seconds,
        },
    )
    log.info(
        "train: %d updates in %.0f s, see %s/%s",
        trainer.state.global_step,
        seconds,
        storage.url,
        STEP,
    )


def make_fingerprint(
    settings: Settings, task: Task, labels_manifest: dict[str, Any]
) -> Fingerprint:
    """What the adapter depends on."""
    return {
        "labels": hash_content([labels_manifest[key] for key in ("fingerprint", "counts")]),
        **fingerprint_student(settings, task),
        **{f"train.{key}": value for key, value in settings.train.model_dump().items()},
    }


def read_labels(storage: RunStorage, files: list[str]) -> list[tuple[str, str]]:
    """Pairs of text and label, of the rows with status ok.

    Raises:
        InputError: there is none.
    """
    rows = [row for name in files for row in storage.read_table(name).to_pylist()]
    labels = [(row["text"], row["label"]) for row in rows if row["status"] == "ok"]
    if not labels:
        raise InputError(f"{storage.url}/labels: none of its {len(rows)} rows has status ok")
    return labels


def encode_labels(
    settings: Settings,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    labels: list[tuple[str, str]],
) -> tuple[Dataset, int]:
    """The training set in tokens, and how many rows were too long.

    Over-long rows are dropped and never cut: a cut would take off the end-of-sequence token.
    """
    rows = [encode_example(tokenizer, task, text, label) for text, label in labels]
    kept = [row for row in rows if len(row["input_ids"]) <= settings.student.max_tokens]
    if not kept:
        raise InputError(
            f"all {len(rows)} labels are longer than DISTILL_STUDENT__MAX_TOKENS="
            f"{settings.student.max_tokens}; raise it"
        )
    return Dataset.from_list(kept), len(rows) - len(kept)


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
