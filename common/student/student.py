"""The student: answers texts of a task, with or without its adapter."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.records import Response
from common.sections import EvaluateSettings
from common.settings import Settings
from common.student.generation import TransformersRuntime
from common.student.prompt import encode_few_shot_prompt, encode_prompt, load_tokenizer
from common.student.source import check_source
from common.student.weights import load_adapter, load_weights
from common.tasks.task import Task


class Student:
    """A loaded student; `limits` has the length limits of responses and batches."""

    def __init__(
        self,
        runtime: TransformersRuntime,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        limits: EvaluateSettings,
    ) -> None:
        self._runtime, self._tokenizer = runtime, tokenizer
        self._task, self._limits = task, limits

    def answer(
        self,
        texts: Sequence[str],
        with_adapter: bool = True,
        with_few_shot: bool = False,
        max_new_tokens: int | None = None,
        check: Callable[[], None] = lambda: None,
        samples: int = 0,
    ) -> list[Response]:
        """Greedy responses, in the order of the texts.

        Args:
            texts: examples of the task.
            with_adapter: False for the base student.
            with_few_shot: whether the prompt begins with the task's few-shot examples.
            max_new_tokens: replaces the setting.
            check: called before each batch; may raise.
            samples: of sampled responses, whose agreement with the greedy one is measured.
        """
        encode = encode_few_shot_prompt if with_few_shot else encode_prompt
        prompts = [encode(self._tokenizer, self._task, text) for text in texts]
        limit = max_new_tokens or self._limits.max_new_tokens
        size = self._limits.batch_tokens
        with nullcontext() if with_adapter else self._runtime.without_adapter():
            responses = self._runtime.generate(prompts, limit, size, check)
            sampled = [
                self._runtime.generate(prompts, limit, size, check, seed) for seed in range(samples)
            ]
        if samples:
            pairs = zip(responses, zip(*sampled, strict=True), strict=True)
            responses = [_note_agreement(response, others) for response, others in pairs]
        if with_few_shot and not self._tokenizer.chat_template:
            # without a template the student continues with another example
            responses = [replace(r, text=r.text.split("\n\n")[0].strip()) for r in responses]
        return responses


def _note_agreement(response: Response, sampled: Sequence[Response]) -> Response:
    """The response with the share of sampled ones that are the same, and their time."""
    agreement = statistics.fmean(other.text == response.text for other in sampled)
    seconds = response.seconds + sum(other.seconds for other in sampled)
    return replace(response, agreement=agreement, seconds=seconds)


def open_student(
    settings: Settings, task: Task, adapter: Path | None = None, is_quantized: bool | None = None
) -> Student:
    """Loads the student, with the adapter of a folder if any; `is_quantized` replaces the setting.

    Raises:
        InputError: it cannot be loaded.
        DistillError: the hub cannot be reached.
    """
    tokenizer, model = load_tokenizer(settings), load_weights(settings, is_quantized)
    if adapter is not None:
        model = load_adapter(model, adapter)
    return Student(TransformersRuntime(model, tokenizer), tokenizer, task, settings.evaluate)


def check_student(settings: Settings, task: Task) -> None:
    """Raises an InputError if the student's files, tokenizer or prompt are unusable."""
    check_source(settings)
    encode_prompt(load_tokenizer(settings), task, "a text")
