"""Greedy decoding of a batch whose prompts begin alike: that part is computed once.

All prompts of a task share the chat template, the instruction and the few-shot examples. Their keys
and values are kept once, for all rows; each row has those of its own tokens. A query attends to
both with one softmax, so the result is that of separate prompts. Rows that end leave the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from common.student.certainty import Step, choose_tokens, measure_steps

Decoded = tuple[list[int], list[Step]]
"""An answer's tokens, without the one that ends it, and the steps of all."""
ATTENTION = "shared_prefix"
_GROWTH = 32
"""Tokens by which the memory of keys and values grows."""
_MOST_SCORES = 1 << 25
"""Attention scores that are in memory at a time."""
_DONE_SHARE = 0.25
"""The share of ended rows at which they are removed from the batch: that copies the others."""
_TOLERANCE = 0.05


class KeyValues(Cache):
    """Keys and values by layer: (rows, heads, tokens, size), in fp32; `shared` has those before.

    As a Cache without layers of its own it is false, so compare it with None.
    """

    def __init__(self, shared: "KeyValues | None" = None) -> None:
        super().__init__(layers=[])
        self.shared = shared
        self.length = 0
        self._parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._lengths: dict[int, int] = {}

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends the keys and values of new tokens; gives all of this object's."""
        keys, values = key_states, value_states
        start = self._lengths.get(layer_idx, 0)
        end = start + keys.shape[2]
        part = self._parts.get(layer_idx)
        if part is None or part[0].shape[2] < end:
            part = (_grow(part and part[0], keys, end), _grow(part and part[1], values, end))
            self._parts[layer_idx] = part
        for whole, new in zip(part, (keys, values), strict=True):
            whole[:, :, start:end] = new
        self._lengths[layer_idx] = self.length = end
        return part[0][:, :, :end], part[1][:, :, :end]

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer."""
        keys, values = self._parts[layer]
        return keys[:, :, : self.length], values[:, :, : self.length]

    def keep(self, rows: torch.Tensor) -> None:
        """Keeps these rows only."""
        self._parts = {
            layer: (keys[rows], values[rows]) for layer, (keys, values) in self._parts.items()
        }

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The tokens before the next one."""
        return self.length + (0 if self.shared is None else self.shared.length)


def _grow(old: torch.Tensor | None, new: torch.Tensor, length: int) -> torch.Tensor:
    rows, heads, _, size = new.shape
    grown = torch.empty(rows, heads, length + _GROWTH, size, device=new.device)
    if old is not None:
        grown[:, :, : old.shape[2]] = old
    return grown


_shared: ContextVar[KeyValues | None] = ContextVar("_shared", default=None)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention to the shared tokens, all visible, and to the rows' own, by the mask.

    query: (rows, heads, queries, size); key and value: (rows, key heads, own tokens, size); mask:
    (rows, 1, queries, own tokens). The output is (rows, queries, heads, size).
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("attention with a soft cap or with sinks is not known here")
    shared = _shared.get()
    layer: Any = module.layer_idx
    shared_keys, shared_values = (None, None) if shared is None else shared.read(layer)
    count = key.shape[2] + (0 if shared is None else shared.length)
    step = max(1, _MOST_SCORES // (query.shape[1] * query.shape[2] * count))
    outputs = [
        _attend(
            query[at : at + step].float() * scaling,
            key[at : at + step],
            value[at : at + step],
            attention_mask[at : at + step],
            shared_keys,
            shared_values,
        )
        for at in range(0, len(query), step)
    ]
    return torch.cat(outputs).transpose(1, 2).contiguous().to(query.dtype), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    shared_key: torch.Tensor | None,
    shared_value: torch.Tensor | None,
) -> torch.Tensor:
    rows, heads, queries, size = query.shape
    groups = key.shape[1]
    grouped = query.reshape(rows, groups, -1, size)  # of the heads that share a key
    own = grouped @ key.transpose(-1, -2)
    hidden = ~mask.expand(rows, 1, queries, -1).repeat(1, 1, heads // groups, 1)
    own = own.masked_fill(hidden, -torch.inf)
    if shared_key is None or shared_value is None:
        return (own.softmax(-1) @ value).view(rows, heads, queries, size)
    # one product for the queries of all rows
    count = shared_key.shape[2]
    together = grouped.transpose(0, 1).reshape(groups, -1, size)
    scores = (together @ shared_key[0].transpose(-1, -2)).view(groups, rows, -1, count)
    weights = torch.cat([scores.transpose(0, 1), own], -1).softmax(-1)
    first = weights[..., :count].transpose(0, 1).reshape(groups, -1, count) @ shared_value[0]
    output = weights[..., count:] @ value
    output += first.view(groups, rows, -1, size).transpose(0, 1)
    return output.view(rows, heads, queries, size)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def _attending(model: Any, shared: KeyValues | None) -> Iterator[None]:
    before = model.config._attn_implementation
    token = _shared.set(shared)
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _shared.reset(token)


@torch.inference_mode()
def read_shared(model: Any, tokens: list[int]) -> KeyValues:
    """The keys and values of tokens that all prompts begin with, at least one."""
    found = KeyValues()
    length = len(tokens)
    mask = torch.ones(length, length, dtype=torch.bool, device=model.device).tril()
    with _attending(model, None):
        model(
            input_ids=torch.tensor([tokens], device=model.device),
            attention_mask=mask[None, None],
            position_ids=torch.arange(length, device=model.device)[None],
            past_key_values=found,
            use_cache=True,
            logits_to_keep=1,
        )
    return found


@torch.inference_mode()
def decode(
    model: Any,
    shared: KeyValues,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    end_tokens: Sequence[int],
    sampler: torch.Generator | None = None,
) -> list[Decoded]:
    """Greedy answers, or sampled ones with a `sampler`.

    Args:
        model: a causal model that `can_share`.
        shared: of the tokens before each prompt.
        prompts: the rest of each prompt, at least one token.
        max_new_tokens: length limit of an answer.
        end_tokens: any of them ends an answer.
        sampler: draws the tokens of sampled answers.
    """
    answers: list[Decoded] = [([], []) for _ in prompts]
    own, batch = KeyValues(shared), _Batch(prompts, shared.length, model.device)
    with _attending(model, shared):
        while True:
            logits = (
                model(**batch.get_inputs(), past_key_values=own, use_cache=True, logits_to_keep=1)
                .logits[:, -1]
                .float()
            )
            chosen, steps = choose_tokens(logits, sampler), measure_steps(logits)
            for place, token in enumerate(chosen.tolist()):
                if (row := batch.rows[place]) is None:
                    continue
                answers[row][1].append(steps[place])
                if not (is_end := token in end_tokens):
                    answers[row][0].append(token)
                if is_end or len(answers[row][0]) == max_new_tokens:
                    batch.rows[place] = None
            alive = [place for place, row in enumerate(batch.rows) if row is not None]
            if not alive:
                return answers
            batch.append(chosen)
            if len(alive) <= (1 - _DONE_SHARE) * len(batch.rows):
                own.keep(torch.tensor(alive, device=model.device))
                batch.keep(alive)


class _Batch:
    """What the model sees next: the rows' own prompts, padded on the left, or their last tokens.

    `rows` are the numbers of the prompts, None for those that have ended.
    """

    def __init__(self, prompts: Sequence[list[int]], start: int, device: torch.device) -> None:
        longest = max(map(len, prompts))
        padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        number = torch.arange(longest, device=device)
        self.rows: list[int | None] = list(range(len(prompts)))
        self._tokens = torch.tensor(
            [[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device
        )
        self._places = start + (number[None] - padding[:, None]).clamp(min=0)
        self._is_real = number[None] >= padding[:, None]
        is_before = number[None] <= number[:, None]
        # padding attends to itself: to nothing gives NaN
        is_same = number[None] == number[:, None]
        self._mask = (self._is_real[:, None] & is_before) | is_same

    def get_inputs(self) -> dict[str, torch.Tensor]:
        """The model's arguments."""
        return {
            "input_ids": self._tokens,
            "attention_mask": self._mask[:, None],
            "position_ids": self._places,
        }

    def append(self, tokens: torch.Tensor) -> None:
        """Goes on to the next token of each row."""
        self._tokens, self._places = tokens[:, None], self._places[:, -1:] + 1
        self._is_real = nn.functional.pad(self._is_real, (0, 1), value=True)
        self._mask = self._is_real[:, None]

    def keep(self, places: list[int]) -> None:
        """Keeps the rows at these places."""
        self.rows = [self.rows[place] for place in places]
        self._tokens, self._places = self._tokens[places], self._places[places]
        self._is_real, self._mask = self._is_real[places], self._mask[places]


@torch.inference_mode()
def can_share(model: Any) -> bool:
    """Whether a model's logits are the same with shared tokens.

    Not so where layers pass on a state, slide over fewer tokens, or have an attention of their own.
    """
    shared, rest = list(range(5, 17)), [[20, 21, 22], [30], [40, 41, 42, 43, 44]]
    seen: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda *call: seen.append(call[-1].logits))
    try:
        alone = [
            model(input_ids=torch.tensor([shared + own], device=model.device)).logits[0, -1]
            for own in rest
        ]
        decode(model, read_shared(model, shared), rest, 1, [])
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError, KeyError):
        return False
    finally:
        hook.remove()
    expected = torch.stack(alone).float()
    difference = (seen[-1][:, -1].float() - expected).abs().max()
    return bool(difference <= _TOLERANCE * expected.abs().max())
