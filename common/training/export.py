"""Exports: the student with its adapter merged in, for transformers and as GGUF files."""

import gc
import logging
import tempfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase

from common.errors import InputError
from common.run.manifest import Fingerprint, Manifest, is_done, require_manifest, write_manifest
from common.run.run import Run
from common.run.steps import ADAPTER, GGUF, MERGED, GgufSummary, LabelSummary, MergeSummary
from common.settings import Settings
from common.student.frame import TASK_TEMPLATE, Frame, find_frame, write_task_template
from common.student.generation import TransformersRuntime
from common.student.memory import explaining_memory
from common.student.prompt import load_tokenizer
from common.student.source import find_student, make_options, read_config
from common.student.student import Student
from common.student.weights import choose_dtype, load_weights
from common.tasks.task import Task
from common.training.gguf_file import GGUF_FILES, Q8_0, check_config, write_gguf
from common.training.gguf_vocabulary import Vocabulary, read_vocabulary
from common.training.modelfile import MODELFILE, render_modelfile
from common.training.train_set import iterate_labels

_TEXTS = 32
_MIN_EQUAL = 0.95
"""The least share of equal answers before and after merging; rounding may change a few."""

log = logging.getLogger(__name__)


def check_exports(settings: Settings, task: Task) -> None:
    """Raises an InputError if the student cannot be written as a GGUF file that is asked for."""
    if "gguf" not in settings.train.exports:
        return
    config, tokenizer = read_config(settings), load_tokenizer(settings)
    try:
        check_config(config)
        _find_frame(task, tokenizer, read_vocabulary(tokenizer, config.vocab_size))
    except ValueError as error:
        raise InputError(
            f"DISTILL_TRAIN__EXPORT=gguf: DISTILL_STUDENT__MODEL={settings.student.model!r} cannot "
            f"be written as GGUF: {error}; set DISTILL_TRAIN__EXPORT=merged, and run llama.cpp's "
            f"convert_hf_to_gguf.py on the run's {MERGED.folder}/"
        ) from None


def merge(run: Run, labels: Manifest[LabelSummary], fingerprint: Fingerprint) -> None:
    """Writes the student with the adapter merged into it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        summary = _make_merged(run, labels, folder)
        files = run.storage.upload(folder / MERGED.folder, MERGED.folder)
    write_manifest(run.storage, MERGED, fingerprint, summary, files=files)
    log.info("train: merged, see %s/%s", run.storage.url, MERGED.folder)


def export_gguf(run: Run, labels: Manifest[LabelSummary], fingerprint: Fingerprint) -> None:
    """Writes the merged student as GGUF files, with a Modelfile for Ollama."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target = folder / MERGED.folder, folder / GGUF.folder
        if is_done(run.storage, MERGED, fingerprint):
            merged = require_manifest(run.storage, MERGED)
            run.storage.download(merged.files, MERGED.folder, source)
        else:
            _make_merged(run, labels, folder)
        summary = convert(run, source, target)
        files = run.storage.upload(target, GGUF.folder)
    write_manifest(run.storage, GGUF, fingerprint, summary, files=files)
    log.info("train: written as GGUF, see %s/%s", run.storage.url, GGUF.folder)


def convert(run: Run, source: Path, target: Path) -> GgufSummary:
    """Writes a merged student's GGUF files, task.jinja and Modelfile to a folder."""
    tokenizer = load_tokenizer(run.settings)
    target.mkdir()
    title = f"{run.task.name}, {Path(run.settings.student.model).name}"
    for kind, name in GGUF_FILES.items():
        write_gguf(source, target / name, tokenizer, title, kind)
    frame = _find_frame(run.task, tokenizer, read_vocabulary(tokenizer, len(tokenizer)))
    (target / TASK_TEMPLATE).write_text(frame.to_jinja(), "utf-8")
    ends = {tokenizer.eos_token_id}
    with suppress(OSError):  # some students have none
        own = GenerationConfig.from_pretrained(source).eos_token_id
        ends |= {*own} if isinstance(own, list) else {own} - {None}
    stops = tokenizer.convert_ids_to_tokens(sorted(ends))
    limit = run.settings.evaluate.max_new_tokens
    modelfile = render_modelfile(GGUF_FILES[Q8_0], frame, stops, limit)
    (target / MODELFILE).write_text(modelfile, "utf-8")
    return {"bytes": {name: (target / name).stat().st_size for name in GGUF_FILES.values()}}


def _find_frame(task: Task, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> Frame:
    frame = find_frame(tokenizer, task, vocabulary.encode)
    if frame is None:
        raise ValueError("its chat template changes the text")
    return frame


def _make_merged(run: Run, labels: Manifest[LabelSummary], folder: Path) -> MergeSummary:
    """Writes the merged student into a folder's `merged`."""
    adapter = require_manifest(run.storage, ADAPTER)
    texts = [row.text for row in islice(iterate_labels(run.storage, labels.files), _TEXTS)]
    advice = "merging needs the whole student unquantised; leave DISTILL_TRAIN__EXPORT empty"
    gc.collect()  # frees the trainer, a reference cycle
    run.storage.download(adapter.files, ADAPTER.folder, folder / ADAPTER.folder)
    with explaining_memory(advice):
        return merge_adapter(run, folder / ADAPTER.folder, folder / MERGED.folder, texts)


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
    write_task_template(target, tokenizer, run.task)
    return {"compared_prompts": len(texts), "equal_answers": equal}
