"""Measures a student in training on the held-out labels."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from common.run.run import Run
from common.student.generation import TransformersRuntime, sort_by_length, take_batch
from common.student.student import Student
from common.training.objectives.objective import Encoded, Objective
from common.training.train_set import Labels
from common.training.trainer import Measure


def make_measure(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    held_out: Labels,
    check: Callable[[], None] = lambda: None,
) -> Measure | None:
    """A function that measures the held-out labels; None without any.

    `agreement` is the share of the labels that greedy decoding gives exactly, `agreement_error` its
    standard error, `loss` the objective's per learned token. `check` is called before each batch,
    and may raise.
    """
    if not held_out:
        return None
    texts, rows = [row.text for row in held_out], [objective.encode(row) for row in held_out]
    answers = [(row.label or "").strip() for row in held_out]
    longest = max(_count_learned(objective, [row]) for row in rows)

    def measure(model: Any) -> dict[str, float]:
        runtime = TransformersRuntime(model, tokenizer)
        student = Student(runtime, tokenizer, run.task, run.settings.evaluate)
        # a longer response agrees with no label
        responses = student.answer(texts, max_new_tokens=longest, check=check)
        check()
        hits = sum(r.text == answer for r, answer in zip(responses, answers, strict=True))
        loss = measure_loss(model, objective, rows, run.settings.evaluate.batch_tokens)
        agreement = hits / len(answers)
        error = math.sqrt(agreement * (1 - agreement) / len(answers))
        return {"agreement": agreement, "agreement_error": error, "loss": loss}

    return measure


def _count_learned(objective: Objective, rows: Sequence[Encoded]) -> int:
    return len(objective.collate(rows)["labels"])


def measure_loss(
    model: Any, objective: Objective, rows: Sequence[Encoded], batch_tokens: int
) -> float:
    """The objective's loss on rows, in nats per learned token."""
    model.eval()
    total = count = 0.0
    lengths = [len(row["input_ids"]) for row in rows]
    order = sort_by_length(lengths)
    while order:
        indices = take_batch(order, lengths, batch_tokens)
        order = order[len(indices) :]
        tensors = objective.collate([rows[i] for i in indices])
        batch = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        with torch.inference_mode():
            total += float(objective.sum_loss(model, batch))
        count += len(batch["labels"])
    return total / count
