"""Batched greedy decoding."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from common.errors import is_memory_error
from common.records import Response
from common.student.certainty import Step, choose_tokens, measure_certainty, measure_steps
from common.student.greedy import Decoded, KeyValues, can_share, decode, read_shared
from common.student.prompt import count_shared
from common.student.source import count_positions

_LOG_SECONDS = 10.0
_FEW_ROWS, _SIMILAR = 32, 0.8
"""More rows than these few are in a batch if they have that share of the longest one's length."""
_LEAST_SHARED = 8
"""Fewer shared tokens are not worth it."""

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
        seed: int | None = None,
    ) -> list[Response]:
        """Greedy responses, or sampled ones with a `seed`, in the order of the prompts.

        What all prompts begin with is computed once, if the model allows it (see
        `common.student.greedy`). Prompts are batched by length, the longest first, so that a batch
        that is too large fails at once. A batch holds at most `batch_tokens` tokens of prompts,
        without what they share, and of responses; out of memory halves that. Responses end at the
        model's last position (such prompts share batches only with prompts of equal length); a
        prompt that fills all positions gets the error too_long. `check` is called before each
        batch, and may raise.
        """
        self._model.eval()
        sampler = None
        if seed is not None:
            sampler = torch.Generator(self._model.device).manual_seed(seed)
        positions = count_positions(self._model.config)
        too_long = [i for i, prompt in enumerate(prompts) if len(prompt) >= positions]
        responses = dict.fromkeys(too_long, Response("", 0, 0.0, error="too_long"))
        if too_long:
            log.warning("evaluate: %d prompts are too long for the student", len(too_long))
        order = [i for i in sort_by_length([len(p) for p in prompts]) if i not in responses]
        shared = self._share([prompts[i] for i in order])
        count = shared.length if shared is not None else 0
        lengths = [min(len(prompt) + max_new_tokens, positions) - count for prompt in prompts]
        started = logged = time.monotonic()
        while order:
            check()
            batch = take_batch(order, lengths, batch_tokens)
            longest = len(prompts[batch[0]])
            if longest + max_new_tokens > positions:
                batch = [i for i in batch if len(prompts[i]) == longest]
            limit = min(max_new_tokens, positions - longest)
            answers = self._try([prompts[i] for i in batch], limit, shared, sampler)
            if answers is None:
                batch_tokens = len(batch) * lengths[batch[0]] // 2
                log.warning("evaluate: too little memory, batches now hold %d tokens", batch_tokens)
                continue
            responses |= zip(batch, answers, strict=True)
            order = order[len(batch) :]
            if time.monotonic() - logged > _LOG_SECONDS:
                logged = time.monotonic()
                _log_progress(len(responses), len(prompts), logged - started)
        return [responses[i] for i in range(len(prompts))]

    def _try(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        shared: KeyValues | None,
        sampler: torch.Generator | None,
    ) -> list[Response] | None:
        """The answers; None if several prompts take too much memory."""
        try:
            return self._answer(prompts, max_new_tokens, shared, sampler)
        except (MemoryError, RuntimeError) as error:
            if len(prompts) == 1 or not is_memory_error(error):
                raise
        torch.cuda.empty_cache()  # outside the handler: the error keeps its tensors allocated
        return None

    def _share(self, prompts: list[list[int]]) -> KeyValues | None:
        """The keys and values of what all prompts begin with; None if it cannot be shared."""
        if not prompts:
            return None
        count = min(count_shared(prompts), min(map(len, prompts)) - 1)
        if count < _LEAST_SHARED or not can_share(self._model):
            return None
        return read_shared(self._model, prompts[0][:count])

    def _answer(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        shared: KeyValues | None,
        sampler: torch.Generator | None,
    ) -> list[Response]:
        model, tokenizer = self._model, self._tokenizer
        started = time.monotonic()
        ends = _end_tokens(model, tokenizer)
        if shared is not None:
            rest = [prompt[shared.length :] for prompt in prompts]
            answers = decode(model, shared, rest, max_new_tokens, ends, sampler)
        else:
            answers = self._generate(prompts, max_new_tokens, ends, sampler)
        seconds = (time.monotonic() - started) / len(prompts)
        texts = tokenizer.batch_decode([ids for ids, _ in answers], skip_special_tokens=True)
        return [
            Response(
                text.strip(),
                len(ids),
                seconds,
                is_cut=len(steps) == len(ids),  # else one of them has ended it
                **measure_certainty(steps)._asdict(),
            )
            for text, (ids, steps) in zip(texts, answers, strict=True)
        ]

    def _generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        ends: list[int],
        sampler: torch.Generator | None,
    ) -> list[Decoded]:
        """As `decode`, by transformers."""
        pad = self._tokenizer.pad_token_id
        padded = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=ends
        )
        listener = _Listener(sampler)
        with torch.inference_mode():
            output = self._model.generate(
                **padded.to(self._model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([listener]),
            )
        rows = output[:, padded["input_ids"].shape[1] :].tolist()
        answers = [list(takewhile(lambda token: token not in ends, row)) for row in rows]
        by_row = zip(*listener.steps, strict=True)
        return [
            (answer, list(steps[: len(answer) + 1]))
            for answer, steps in zip(answers, by_row, strict=True)
        ]


class _Listener(LogitsProcessor):
    """Keeps the rows' steps, and leaves only the sampled tokens if there is a `sampler`."""

    def __init__(self, sampler: torch.Generator | None) -> None:
        self.steps: list[list[Step]] = []
        self._sampler = sampler

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(measure_steps(scores.float()))
        if self._sampler is None:
            return scores
        chosen = choose_tokens(scores.float(), self._sampler)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def _log_progress(done: int, rows: int, seconds: float) -> None:
    rate = done / seconds
    log.info("evaluate: %d of %d, %.1f rows/s, %.0f s left", done, rows, rate, (rows - done) / rate)


def sort_by_length(lengths: Sequence[int]) -> list[int]:
    """Indices by length, descending."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def take_batch(order: list[int], lengths: Sequence[int], batch_tokens: int) -> list[int]:
    """The first indices, whose number times the first length is within `batch_tokens`.

    A batch of many rows ends before those that would be padded much.
    """
    longest = lengths[order[0]]
    batch = order[: max(1, batch_tokens // longest)]
    rest = enumerate(batch[_FEW_ROWS:], _FEW_ROWS)
    return batch[: next((n for n, i in rest if lengths[i] < _SIMILAR * longest), len(batch))]


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    known = model.generation_config.eos_token_id
    more = known if isinstance(known, list) else [known]
    return sorted({tokenizer.eos_token_id, *(token for token in more if token is not None)})
