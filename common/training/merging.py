"""Merges an adapter into its student, for servers that take no adapters."""

import gc
import logging
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoConfig, GenerationConfig

from common.errors import InputError
from common.run.manifest import Fingerprint, require_manifest, write_manifest
from common.run.storage import RunStorage
from common.settings import Settings
from common.student.generation import generate
from common.student.memory import explaining_memory
from common.student.student import (
    choose_dtype,
    encode_prompt,
    find_student,
    load_student,
    load_tokenizer,
)
from common.tasks.model import Task
from common.training.train_set import read_labels

STEP = "merged"
_PROMPTS = 32
_LEAST_EQUAL = 0.95
"""The share of the prompts that must be answered alike; rounding may turn a close call."""

log = logging.getLogger(__name__)


def merge(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    labels_manifest: dict[str, Any],
    fingerprint: Fingerprint,
) -> None:
    """Writes the student with the adapter merged into it."""
    adapter = require_manifest(storage, "adapter", "python -m jobs.train")
    labels = read_labels(storage, labels_manifest["files"])
    tokenizer = load_tokenizer(settings)
    prompts = [encode_prompt(tokenizer, task, text) for text, _ in labels[:_PROMPTS]]
    advice = "merging needs the whole student unquantised; set DISTILL_TRAIN__MERGE=false"
    gc.collect()  # the trainer, which refers to itself
    with tempfile.TemporaryDirectory() as name, explaining_memory(advice):
        folder = Path(name)
        storage.download(adapter["files"], "adapter", folder / "adapter")
        summary = merge_adapter(settings, folder / "adapter", folder / STEP, prompts)
        files = storage.upload(folder / STEP, STEP)
    write_manifest(storage, STEP, fingerprint, files=files, summary=summary)
    log.info("train: merged, see %s/%s", storage.url, STEP)


def merge_adapter(
    settings: Settings, adapter: Path, target: Path, prompts: list[list[int]]
) -> dict[str, Any]:
    """Writes the merged student to a folder; gives how much it answers as the adapter does.

    The adapter is merged onto the unquantised student: what is added to 4-bit weights is rounded
    to 4 bits again, and mostly lost.

    Raises:
        InputError: it answers otherwise than the adapter on that same student does.
    """
    student = load_student(settings, is_quantized=False)
    model: Any = PeftModel.from_pretrained(student, str(adapter))
    tokenizer = load_tokenizer(settings)
    limits = settings.evaluate.model_dump()
    before = generate(model, tokenizer, prompts, **limits)
    model = model.merge_and_unload()
    after = generate(model, tokenizer, prompts, **limits)
    equal = sum(b.text == a.text for b, a in zip(before, after, strict=True))
    if equal < _LEAST_EQUAL * len(prompts):
        raise InputError(
            f"the merged student answers {len(prompts) - equal} of {len(prompts)} prompts "
            "otherwise than with the adapter beside it; serve the adapter instead"
        )
    source = find_student(settings)
    with suppress(OSError):  # not every student has any
        model.generation_config = GenerationConfig.from_pretrained(source)
    model.to(AutoConfig.from_pretrained(source).dtype or choose_dtype()).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return {"compared_prompts": len(prompts), "equal_answers": equal}
