"""Merges an adapter into its student, for servers that take no adapters."""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from common.errors import DistillError
from common.settings import Settings
from common.student import find_student, generate, load_tokenizer

_LEAST_EQUAL = 0.95
"""The share of the prompts that must be answered alike; rounding may turn a close call."""

log = logging.getLogger(__name__)


def merge_adapter(
    settings: Settings, adapter: Path, target: Path, prompts: list[list[int]]
) -> dict[str, Any]:
    """Writes the merged student to a folder; gives how much it answers as the adapter does.

    The adapter is merged onto the unquantised student: what is added to 4-bit weights is rounded
    to 4 bits again, and mostly lost.

    Raises:
        DistillError: it answers otherwise than the adapter on that same student does.
    """
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    student: Any = AutoModelForCausalLM.from_pretrained(find_student(settings), dtype=dtype)
    if torch.cuda.is_available():
        student = student.to("cuda")
    model: Any = PeftModel.from_pretrained(student, str(adapter))
    tokenizer = load_tokenizer(settings)
    limits = settings.evaluate.model_dump()
    before = generate(model, tokenizer, prompts, **limits)
    model = model.merge_and_unload()
    after = generate(model, tokenizer, prompts, **limits)
    equal = sum(b.text == a.text for b, a in zip(before, after, strict=True))
    if equal < _LEAST_EQUAL * len(prompts):
        raise DistillError(
            f"the merged student answers {len(prompts) - equal} of {len(prompts)} prompts "
            "otherwise than with the adapter beside it; serve the adapter instead"
        )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return {"compared_prompts": len(prompts), "equal_answers": equal}
