"""The student of the ladder: its settings, its labels, its training."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from datasets import Dataset
from transformers import TrainerCallback, set_seed

from common.environment import load_settings
from common.labels.label_row import make_label
from common.records import Example, LabelRow, hash_text
from common.settings import Settings
from common.student.generation import TransformersRuntime
from common.student.prompt import load_tokenizer
from common.student.student import Student
from common.teacher.replies import Reply
from common.training.trainer import make_trainer
from jobs.train import make_objective
from tests.benchmarks.ladder_tasks import Asked, LadderTask
from tests.real.reviews import find_student


def configure(ladder: LadderTask, variables: dict[str, str]) -> Settings:
    variables = {
        "STUDENT__MODEL": str(find_student()),
        "EVALUATE__MAX_NEW_TOKENS": str(ladder.max_new_tokens),
        **variables,
    }
    with mock.patch.dict(os.environ, {f"DISTILL_{n}": v for n, v in variables.items()}):
        return load_settings()


def train_student(
    settings: Settings,
    ladder: LadderTask,
    rows: Sequence[LabelRow],
    callbacks: Sequence[TrainerCallback] = (),
) -> Any:
    """The student after the last update."""
    tokenizer = load_tokenizer(settings)
    objective = make_objective(settings, ladder.task, tokenizer)
    usable = (row for row in rows if row.status == "ok")
    dataset = Dataset.from_list([t for row in usable for t in objective.encode_targets(row)])
    set_seed(settings.train.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            settings, tokenizer, objective, dataset, Path(folder), callbacks=callbacks
        )
        trainer.train()
    return trainer.model


def make_student(settings: Settings, model: Any, ladder: LadderTask) -> Student:
    tokenizer = load_tokenizer(settings)
    runtime = TransformersRuntime(model, tokenizer)
    return Student(runtime, tokenizer, ladder.task, settings.evaluate)


def make_row(ladder: LadderTask, asked: Asked, answers: Sequence[str]) -> LabelRow:
    """As the label job makes it of replies."""
    example = Example(hash_text(asked.text), asked.text)
    told = {"reasoning_content": asked.reasoning}
    bodies = [
        {"choices": [{"message": {"content": answer} | told, "logprobs": asked.logprobs}]}
        for answer in answers
    ]
    replies = [Reply("", 200, json.dumps(body), attempts=1, seconds=0.0) for body in bodies]
    return make_label(example, replies, ladder.task)
