"""Fine-tunes the student on the labels with QLoRA: `python -m jobs.train`.

NF4 base weights, a LoRA adapter in fp32, loss on the label's tokens only. Some labels are held
out; the checkpoint that agrees best with the teacher on them is the result. Reads
<root>/<run>/labels and writes <root>/<run>/adapter; on the way <root>/<run>/checkpoints, from
which a rerun goes on exactly.
"""

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from common.agreement import Labels, hold_out, make_measure
from common.checkpoints import Checkpoints
from common.command import run_job
from common.errors import InputError, SettingsError
from common.manifest import (
    Fingerprint,
    hash_content,
    is_done,
    require_manifest,
    write_manifest,
)
from common.merging import merge_adapter
from common.model_card import render_card
from common.settings import Settings
from common.signals import noting_signals
from common.storage import RunStorage
from common.student import encode_example, encode_prompt, fingerprint_student, load_tokenizer
from common.tasks import Task, load_task
from common.training import Schedule, find_best, make_trainer

SECTIONS = ("run", "task", "storage", "student", "train")
STEP, MERGED = "adapter", "merged"
HISTORY_FILE = f"{STEP}/history.jsonl"
_NO_RESULT = {"gradient_checkpointing", "checkpoint_seconds", "report_to", "merge", "push_to"}
"""Settings that do not change what is learned."""
_MERGE_PROMPTS = 32

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
        log.info("train: already done, see %s/%s", storage.url, STEP)
    else:
        train(settings, task, storage, labels_manifest, fingerprint)
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
) -> None:
    """Trains, from the latest checkpoint if there is one, and writes the best adapter."""
    started = time.monotonic()
    checkpoints = Checkpoints(storage, fingerprint)
    tokenizer = load_tokenizer(settings)
    labels, held_out = hold_out(
        read_labels(storage, labels_manifest["files"]), settings.train.held_out
    )
    dataset, dropped = encode_labels(settings, task, tokenizer, labels)
    counts = {"labels": len(dataset), "held_out": len(held_out), "dropped_too_long": dropped}
    log.info("train: %s", ", ".join(f"{value} {name}" for name, value in counts.items()))
    set_seed(settings.train.seed)
    with tempfile.TemporaryDirectory() as name, noting_signals() as signals:
        folder = Path(name)
        schedule = Schedule(settings.train, checkpoints, signals)
        measure = make_measure(settings, task, tokenizer, held_out) if held_out else None
        with explaining_memory(settings):
            trainer = make_trainer(settings, tokenizer, dataset, folder, measure, [schedule])
            schedule.trainer = trainer
            trainer.train(resume_from_checkpoint=resume(checkpoints, folder))
        signals.check()
        history = trainer.state.log_history
        best = find_best(history) or trainer.state.global_step
        adapter = folder / f"checkpoint-{best}"
        if not adapter.exists():
            checkpoints.load(best, adapter)
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
        files = write_adapter(storage, tokenizer, adapter, folder / STEP, card)
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    storage.write_bytes(HISTORY_FILE, lines.encode())
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


def resume(checkpoints: Checkpoints, folder: Path) -> str | None:
    """The local folder of the latest checkpoint; None where there is none."""
    updates = checkpoints.list_updates()
    if not updates:
        return None
    target = folder / f"checkpoint-{updates[-1]}"
    checkpoints.load(updates[-1], target)
    log.info("train: going on after update %d", updates[-1])
    return str(target)


def write_adapter(
    storage: RunStorage,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Path,
    folder: Path,
    card: str,
) -> list[str]:
    """Writes what is needed to use the adapter, by way of a local folder; gives its files."""
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (checkpoint / name).rename(folder / name)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, "utf-8")
    return storage.upload(folder, STEP)


def merge(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    labels_manifest: dict[str, Any],
    fingerprint: Fingerprint,
) -> None:
    """Writes the student with the adapter merged into it."""
    adapter = require_manifest(storage, STEP, "python -m jobs.train")
    labels = read_labels(storage, labels_manifest["files"])
    tokenizer = load_tokenizer(settings)
    prompts = [encode_prompt(tokenizer, task, text) for text, _ in labels[:_MERGE_PROMPTS]]
    with tempfile.TemporaryDirectory() as name, explaining_memory(settings):
        folder = Path(name)
        storage.download(adapter["files"], STEP, folder / STEP)
        summary = merge_adapter(settings, folder / STEP, folder / MERGED, prompts)
        files = storage.upload(folder / MERGED, MERGED)
    write_manifest(storage, MERGED, fingerprint, files=files, summary=summary)
    log.info("train: merged, see %s/%s", storage.url, MERGED)


def push(settings: Settings, storage: RunStorage) -> None:
    """Publishes the adapter on the Hugging Face hub, as HF_TOKEN allows."""
    from huggingface_hub import HfApi

    adapter = require_manifest(storage, STEP, "python -m jobs.train")
    name = str(settings.train.push_to)
    with tempfile.TemporaryDirectory() as folder:
        storage.download(adapter["files"], STEP, Path(folder))
        try:
            HfApi().create_repo(name, private=True, exist_ok=True)
            HfApi().upload_folder(repo_id=name, folder_path=folder)
        except Exception as error:  # the hub's client has errors of many kinds
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"DISTILL_TRAIN__PUSH_TO={name!r}: {type(error).__name__}: {reason}; check the "
                "name and HF_TOKEN; the adapter itself is done"
            ) from None
    log.info("train: published as %s", name)


@contextlib.contextmanager
def explaining_memory(settings: Settings) -> Iterator[None]:
    """Raises a SettingsError, which no retry repeats, where the memory does not suffice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = str(error).split(". ")[0]
        raise SettingsError(
            f"the memory does not suffice ({reason}); lower DISTILL_TRAIN__BATCH_SIZE (now "
            f"{settings.train.batch_size}) or DISTILL_STUDENT__MAX_TOKENS (now "
            f"{settings.student.max_tokens}), or set DISTILL_TRAIN__GRADIENT_CHECKPOINTING=true"
        ) from None


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


def read_labels(storage: RunStorage, files: list[str]) -> Labels:
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
    settings: Settings, task: Task, tokenizer: PreTrainedTokenizerBase, labels: Labels
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
