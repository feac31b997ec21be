"""The systems that are compared, each as a function from test rows to its responses."""

import gc
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from common.data.examples import TestRow
from common.errors import DistillError
from common.labels.known import label_known, resume
from common.labels.labeler import check_teacher, label_here, make_quota, open_teacher
from common.labels.progress import Progress
from common.prices.prices import find_price
from common.records import Example, LabelRow
from common.run.lock import hold_run
from common.run.storage import RunStorage
from common.settings import Settings
from common.student.generation import Response, generate
from common.student.student import (
    describe_weights,
    encode_few_shot_prompt,
    encode_prompt,
    load_adapter,
    load_student,
    load_tokenizer,
)
from common.tasks.model import Task
from common.teacher.statuses import PASSING_ERRORS

STUDENTS = ("base", "base_few_shot", "distilled")
"""The systems that are one model, with its adapter off or on."""

log = logging.getLogger(__name__)


def copy_input(rows: Sequence[TestRow]) -> list[Response]:
    """The texts as they are: what doing nothing would score."""
    return [Response(row.text.strip(), 0, 0.0) for row in rows]


def ask_teacher(
    settings: Settings, task: Task, storage: RunStorage, rows: Sequence[TestRow]
) -> list[Response]:
    """The teacher's answers, under the label rules; a row without a label answers nothing.

    Replies are journaled like the label job's, so that they are paid for once.
    """
    examples = [Example(row.id, row.text) for row in rows]
    answers = label_known(settings, task, storage, examples).rows
    if len(answers) < len(examples):
        with hold_run(storage, "evaluate") as lock, open_teacher(settings) as url:
            known = resume(settings, task, storage, examples, lock)
            missing = [example for example in examples if example.id not in known.rows]
            quota = make_quota(settings, known.cost_usd)
            check_teacher(settings, url)
            calls = len(missing) * settings.label.samples
            progress = Progress(calls, find_price(settings.teacher) is not None, "teacher")
            new = label_here(
                settings, task, url, missing, quota, lock, progress.show, known.replies
            )
            answers = known.rows | {row.id: row for row in new}
    ordered = [answers[example.id] for example in examples]
    _check_gaps(settings, ordered)
    return [Response(a.label or "", a.completion_tokens, a.seconds, error=a.error) for a in ordered]


def _check_gaps(settings: Settings, answers: list[LabelRow]) -> None:
    """Rows that the teacher refuses count as wrong, and so do some that it failed at.

    Raises:
        DistillError: those are more than `label.max_failure_rate` allows.
    """
    lost = [answer.error for answer in answers if answer.error in PASSING_ERRORS]
    if len(lost) > settings.label.max_failure_rate * len(answers):
        raise DistillError(
            f"{len(lost)} of {len(answers)} test rows have no answer of the teacher (the first: "
            f"{lost[0]}); run again to ask for them, or raise DISTILL_LABEL__MAX_FAILURE_RATE="
            f"{settings.label.max_failure_rate:g}"
        )
    gaps = Counter(f"{a.status} ({a.error})" for a in answers if a.status != "ok")
    for kind, count in gaps.items():
        log.warning("evaluate: %d teacher rows are %s and count as wrong", count, kind)


def ask_students(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    adapter_files: list[str],
    rows: Sequence[TestRow],
    names: Sequence[str],
) -> Iterator[tuple[str, list[Response]]]:
    """The answers of the base student, zero-shot or few-shot, and of the distilled one.

    All of `names` are one model, with its adapter off or on, in one precision.
    """
    if not names:
        return
    tokenizer = load_tokenizer(settings)
    with tempfile.TemporaryDirectory() as folder:
        storage.download(adapter_files, "adapter", Path(folder))
        model = load_adapter(load_student(settings), Path(folder))
    for name in names:
        encode = encode_few_shot_prompt if name == "base_few_shot" else encode_prompt
        prompts = [encode(tokenizer, task, row.text) for row in rows]
        with nullcontext() if name == "distilled" else model.disable_adapter():
            responses = _generate(settings, name, model, tokenizer, prompts)
        if name == "base_few_shot" and not tokenizer.chat_template:
            # such a student goes on with a next example, as it was shown
            responses = [replace(r, text=r.text.split("\n\n")[0].strip()) for r in responses]
        yield name, responses


def ask_merged(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    merged_files: list[str],
    rows: Sequence[TestRow],
) -> list[Response]:
    """The answers of the merged student: the very files that a server would load, unquantised."""
    gc.collect()  # the quantised student before it
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        storage.download(merged_files, "merged", Path(folder))
        student = settings.student.model_copy(update={"model": folder})
        own = settings.model_copy(update={"student": student})
        tokenizer, model = load_tokenizer(own), load_student(own, is_quantized=False)
    prompts = [encode_prompt(tokenizer, task, row.text) for row in rows]
    return _generate(settings, "merged", model, tokenizer, prompts)


def _generate(
    settings: Settings, name: str, model: Any, tokenizer: Any, prompts: list[list[int]]
) -> list[Response]:
    started = time.monotonic()
    responses = generate(model, tokenizer, prompts, **settings.evaluate.model_dump())
    seconds = time.monotonic() - started
    log.info("evaluate: %s, %d rows in %.0f s", name, len(prompts), seconds)
    return responses


def describe_system(
    settings: Settings, name: str, table: pa.Table, labels: dict[str, Any]
) -> dict[str, Any]:
    """What goes with a system's scores: rows without an answer by reason, speed, weights, price.

    The teacher's price is that of the labels, whose manifest is `labels`.
    """
    facts: dict[str, Any] = {
        "unanswered": dict(Counter(table["error"].drop_null().to_pylist()).most_common())
    }
    summary = labels.get("summary", {})
    if name == "teacher" and summary.get("run_cost_usd"):
        facts["cost_usd_per_1000"] = 1000 * summary["run_cost_usd"] / summary["inputs"]
    if name in (*STUDENTS, "merged"):  # they answer many prompts at a time
        seconds = max(pc.sum(table["seconds"]).as_py(), 1e-9)
        tokens = pc.sum(table["tokens"]).as_py()
        facts |= {"rows_per_second": len(table) / seconds, "tokens_per_second": tokens / seconds}
        facts["precision"] = describe_weights(settings, is_quantized=name != "merged")
    return facts
