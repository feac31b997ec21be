"""Batched greedy decoding."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from common.records import Response
from common.student.memory import is_memory_error
from common.student.source import count_positions

_LOG_SECONDS = 10.0

log = logging.getLogger(__name__)


class TransformersRuntime:
    """A transformers model, with or without a PEFT adapter."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer

    def without_adapter(self) -> AbstractContextManager[None]:
        """A context in which the base student answers."""
        has_adapter = hasattr(self._model, "disable_adapter")
        return self._model.disable_adapter() if has_adapter else nullcontext()

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        batch_tokens: int,
        check: Callable[[], None] = lambda: None,
    ) -> list[Response]:
        """Greedy responses, in the order of the prompts.

        Prompts are batched by length, the longest first, so that a batch that is too large fails at
        once. A batch holds at most `batch_tokens` tokens of prompts and responses; out of memory
        halves that. Responses end at the model's last position (such prompts share batches only
        with prompts of equal length); a prompt that fills all positions gets the error too_long.
        `check` is called before each batch, and may raise.
        """
        self._model.eval()
        positions = count_positions(self._model.config)
        lengths = [min(len(prompt) + max_new_tokens, positions) for prompt in prompts]
        too_long = [i for i, prompt in enumerate(prompts) if len(prompt) >= positions]
        responses = dict.fromkeys(too_long, Response("", 0, 0.0, error="too_long"))
        if too_long:
            log.warning("evaluate: %d prompts are too long for the student", len(too_long))
        order = [i for i in sort_by_length([len(p) for p in prompts]) if i not in responses]
        started = logged = time.monotonic()
        while order:
            check()
            batch = take_batch(order, lengths, batch_tokens)
            longest = len(prompts[batch[0]])
            if longest + max_new_tokens > positions:
                batch = [i for i in batch if len(prompts[i]) == longest]
            try:
                answers = self._answer([prompts[i] for i in batch], max_new_tokens, positions)
            except (MemoryError, RuntimeError) as error:
                if len(batch) == 1 or not is_memory_error(error):
                    raise
                answers, batch_tokens = None, len(batch) * lengths[batch[0]] // 2
            if answers is None:  # outside the handler: the error keeps its tensors allocated
                torch.cuda.empty_cache()
                log.warning("evaluate: too little memory, batches now hold %d tokens", batch_tokens)
                continue
            responses |= zip(batch, answers, strict=True)
            order = order[len(batch) :]
            if time.monotonic() - logged > _LOG_SECONDS:
                logged = time.monotonic()
                _log_progress(len(responses), len(prompts), logged - started)
        return [responses[i] for i in range(len(prompts))]

    def _answer(
        self, prompts: list[list[int]], max_new_tokens: int, positions: int
    ) -> list[Response]:
        model, tokenizer = self._model, self._tokenizer
        started = time.monotonic()
        padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=min(max_new_tokens, positions - padded["input_ids"].shape[1]),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=_end_tokens(model, tokenizer),
        )
        with torch.inference_mode():
            output = model.generate(**padded, generation_config=config)
        answers = output[:, padded["input_ids"].shape[1] :].cpu()
        seconds = (time.monotonic() - started) / len(prompts)
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        counts = (answers != tokenizer.pad_token_id).sum(1).tolist()
        return [Response(t.strip(), count, seconds) for t, count in zip(texts, counts, strict=True)]


def _log_progress(done: int, rows: int, seconds: float) -> None:
    rate = done / seconds
    log.info("evaluate: %d of %d, %.1f rows/s, %.0f s left", done, rows, rate, (rows - done) / rate)


def sort_by_length(lengths: Sequence[int]) -> list[int]:
    """Indices by length, descending."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def take_batch(order: list[int], lengths: Sequence[int], batch_tokens: int) -> list[int]:
    """The first indices, whose number times the first length is within `batch_tokens`."""
    return order[: max(1, batch_tokens // lengths[order[0]])]


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    known = model.generation_config.eos_token_id
    more = known if isinstance(known, list) else [known]
    return sorted({tokenizer.eos_token_id, *(token for token in more if token is not None)})
