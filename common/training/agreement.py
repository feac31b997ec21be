"""How well a student in training agrees with the teacher, on labels that it does not learn from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from common.settings import Settings
from common.student.generation import generate, sort_by_length, take_batch
from common.student.student import encode_example, encode_prompt
from common.tasks.model import Task
from common.training.batches import LabelCollator, compute_logits
from common.training.train_set import Labels
from common.training.trainer import Measure


def make_measure(
    settings: Settings,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Labels,
    check: Callable[[], None] = lambda: None,
) -> Measure | None:
    """What measures `agreement` and `loss` on the held-out labels; None if there are none.

    The agreement is the share of them that the student gives exactly, by greedy decoding; the loss
    is its mean cross-entropy on their tokens. `check` is called now and then, and may raise.
    """
    if not held_out:
        return None
    prompts = [encode_prompt(tokenizer, task, text) for text, _ in held_out]
    rows = [encode_example(tokenizer, task, text, label) for text, label in held_out]
    answers = [label.strip() for _, label in held_out]
    longest = max(len(r["input_ids"]) - len(p) for r, p in zip(rows, prompts, strict=True))

    def measure(model: Any) -> dict[str, float]:
        responses = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=longest,  # what is longer agrees with none of them
            batch_tokens=settings.evaluate.batch_tokens,
            check=check,
        )
        check()
        hits = sum(r.text == answer for r, answer in zip(responses, answers, strict=True))
        loss = measure_loss(model, tokenizer, rows, settings.evaluate.batch_tokens)
        return {"agreement": hits / len(answers), "loss": loss}

    return measure


def measure_loss(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
    batch_tokens: int,
) -> float:
    """The mean cross-entropy of the rows' learned tokens, in nats."""
    collate = LabelCollator(tokenizer.pad_token_id)
    model.eval()
    total = count = 0.0
    lengths = [len(row["input_ids"]) for row in rows]
    order = sort_by_length(lengths)
    while order:
        indices = take_batch(order, lengths, batch_tokens)
        order = order[len(indices) :]
        tensors = collate([rows[i] for i in indices])
        batch = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        with torch.inference_mode():
            logits = compute_logits(model, batch["input_ids"], batch["positions"])
            total += float(cross_entropy(logits.float(), batch["labels"], reduction="sum"))
        count += len(batch["labels"])
    return total / count
