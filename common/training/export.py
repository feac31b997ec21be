"""Exports: the student with its adapter merged in, and the adapter on the hub."""

import gc
import logging
import tempfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft import PeftModel
from transformers import GenerationConfig

from common.errors import DistillError, InputError
from common.hub import is_transient
from common.run.manifest import Fingerprint, Manifest, require_manifest, write_manifest
from common.run.run import Run
from common.run.steps import ADAPTER, MERGED, LabelSummary, MergeSummary
from common.student.generation import TransformersRuntime
from common.student.memory import explaining_memory
from common.student.prompt import load_tokenizer
from common.student.source import find_student, make_options, read_config
from common.student.student import Student
from common.student.weights import choose_dtype, load_weights
from common.training.train_set import iterate_labels

_TEXTS = 32
_MIN_EQUAL = 0.95
"""The least share of equal answers before and after merging; rounding may change a few."""

log = logging.getLogger(__name__)


def merge(run: Run, labels: Manifest[LabelSummary], fingerprint: Fingerprint) -> None:
    """Writes the student with the adapter merged into it."""
    adapter = require_manifest(run.storage, ADAPTER)
    texts = [row.text for row in islice(iterate_labels(run.storage, labels.files), _TEXTS)]
    advice = "merging needs the whole student unquantised; set DISTILL_TRAIN__MERGE=false"
    gc.collect()  # frees the trainer, a reference cycle
    with tempfile.TemporaryDirectory() as name, explaining_memory(advice):
        folder = Path(name)
        run.storage.download(adapter.files, ADAPTER.folder, folder / ADAPTER.folder)
        target = folder / MERGED.folder
        summary = merge_adapter(run, folder / ADAPTER.folder, target, texts)
        files = run.storage.upload(target, MERGED.folder)
    write_manifest(run.storage, MERGED, fingerprint, summary, files=files)
    log.info("train: merged, see %s/%s", run.storage.url, MERGED.folder)


def merge_adapter(run: Run, adapter: Path, target: Path, texts: list[str]) -> MergeSummary:
    """Writes the merged student to a folder; compares its answers with the adapter's.

    The base is unquantised: rounding to 4 bits would lose most of what the adapter adds.

    Raises:
        InputError: too many answers differ.
    """
    tokenizer = load_tokenizer(run.settings)
    weights = load_weights(run.settings, is_quantized=False, is_exact=True)
    model: Any = PeftModel.from_pretrained(weights, str(adapter))

    def answer() -> list[str]:
        runtime = TransformersRuntime(model, tokenizer)
        student = Student(runtime, tokenizer, run.task, run.settings.evaluate)
        return [response.text for response in student.answer(texts)]

    before = answer()
    model = model.merge_and_unload()
    equal = sum(b == a for b, a in zip(before, answer(), strict=True))
    if equal < _MIN_EQUAL * len(texts):
        raise InputError(
            f"the merged student answers {len(texts) - equal} of {len(texts)} prompts "
            "differently from the student with the adapter; serve the adapter instead"
        )
    source, options = find_student(run.settings), make_options(run.settings)
    with suppress(OSError):  # some students have none
        model.generation_config = GenerationConfig.from_pretrained(source, **options)
    model.to(read_config(run.settings).dtype or choose_dtype()).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return {"compared_prompts": len(texts), "equal_answers": equal}


def push(run: Run) -> None:
    """Publishes the adapter on the hub, in a private repository if it is new.

    Raises:
        InputError: the hub refuses.
        DistillError: it cannot be reached.
    """
    adapter = require_manifest(run.storage, ADAPTER)
    name = str(run.settings.train.push_to)
    with tempfile.TemporaryDirectory() as folder:
        run.storage.download(adapter.files, ADAPTER.folder, Path(folder))
        try:
            HfApi().create_repo(name, private=True, exist_ok=True)
            HfApi().upload_folder(repo_id=name, folder_path=folder)
        except Exception as error:  # the client raises many types
            reason = " ".join(str(error).split())[:300]
            message = f"DISTILL_TRAIN__PUSH_TO={name!r}: {type(error).__name__}: {reason}"
            if is_transient(error):
                raise DistillError(f"{message}; run again when the hub can be reached") from None
            raise InputError(
                f"{message}; check the name and HF_TOKEN; the adapter itself is done"
            ) from None
    log.info("train: published as %s", name)
