"""How sure a student is of the tokens that it chooses."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Step(NamedTuple):
    """A token of an answer: its log-probability, and by how much it is likelier than the next."""

    logprob: float
    margin: float


class Certainty(NamedTuple):
    """Of an answer's tokens, with the one that ends it: mean and least log-probability, margin.

    `margin` is the least difference of the probabilities of the two likeliest tokens.
    """

    mean_logprob: float
    least_logprob: float
    margin: float


def measure_steps(logits: torch.Tensor) -> list[Step]:
    """What greedy decoding chooses by logits of shape (rows, vocabulary), an item per row."""
    whole = logits.logsumexp(-1, keepdim=True)
    first, second = (logits.topk(2).values - whole).unbind(-1)
    margins = first.exp() - second.exp()
    return [Step(*pair) for pair in zip(first.tolist(), margins.tolist(), strict=True)]


def choose_tokens(logits: torch.Tensor, sampler: torch.Generator | None) -> torch.Tensor:
    """The next token of each row, (rows): the likeliest, or drawn by its probability."""
    if sampler is None:
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1), 1, generator=sampler)[:, 0]


def measure_certainty(steps: Sequence[Step]) -> Certainty:
    """The certainty of an answer by its steps, at least one."""
    logprobs = [step.logprob for step in steps]
    return Certainty(statistics.fmean(logprobs), min(logprobs), min(step.margin for step in steps))
