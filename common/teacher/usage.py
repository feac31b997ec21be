"""What a response says of its tokens and of its cost, under the names of several APIs."""

from dataclasses import dataclass
from typing import Any

_CACHED = (
    ("prompt_tokens_details", "cached_tokens"),
    ("cached_tokens",),
    ("prompt_cache_hit_tokens",),
    ("cache_read_input_tokens",),
)
_WRITTEN = (
    ("prompt_tokens_details", "cache_write_tokens"),
    ("prompt_tokens_details", "cache_creation_tokens"),
    ("cache_creation_input_tokens",),
)
COUNTED_ELSEWHERE = "counted_elsewhere"
"""The mark of a choice whose request's usage is with the first choice."""
_MOST_TOKENS = 2**40
_TICKS_PER_USD = 1e10
"""xAI's unit of cost."""


@dataclass(frozen=True)
class Usage:
    """A call's tokens, and what the provider says of their price.

    Attributes:
        cached_tokens: the part of the prompt's that the provider's cache held.
        completion_tokens: they include `reasoning_tokens`.
        written_tokens: the part of the prompt's that the cache took in.
        service_tier: how the provider has served the call; empty if it does not tell.
        cost_usd: the provider's own figure; None if it does not tell.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    written_tokens: int = 0
    service_tier: str = ""
    cost_usd: float | None = None


def read_usage(content: dict[str, Any]) -> Usage | None:
    """The tokens of a call, under the names of several APIs."""
    usage = content.get("usage")
    if not isinstance(usage, dict) or "prompt_tokens" not in usage:
        return None
    if usage.get(COUNTED_ELSEWHERE):
        return Usage()
    prompt, completion = (_read_count(usage, f"{name}_tokens") for name in ("prompt", "completion"))
    if not prompt:  # no number, or no prompt's: nothing is known
        return None
    reasoning = _read_count(usage, "completion_tokens_details", "reasoning_tokens")
    beyond = _read_count(usage, "total_tokens") - prompt  # Gemini and Grok count reasoning there
    tier = content.get("service_tier")
    return Usage(
        prompt,
        max(_read_count(usage, *path) for path in _CACHED),
        max(completion, beyond),
        max(reasoning, beyond - completion),
        max(_read_count(usage, *path) for path in _WRITTEN),
        tier if isinstance(tier, str) else "",
        _read_cost(usage),
    )


def _read_cost(usage: dict[str, Any]) -> float | None:
    """The dollars that a response tells: xAI's; OpenRouter's, with those of one's own key."""
    ticks = _read_dollars(usage.get("cost_in_usd_ticks"))
    if ticks is not None:
        return ticks / _TICKS_PER_USD
    cost, details = _read_dollars(usage.get("cost")), usage.get("cost_details")
    if cost is None or not usage.get("is_byok") or not isinstance(details, dict):
        return cost
    return cost + (_read_dollars(details.get("upstream_inference_cost")) or 0.0)


def _read_dollars(value: Any) -> float | None:
    """A finite number of at least 0; None for others."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < float("inf") else None


def _read_count(usage: Any, *path: str) -> int:
    """A number of tokens in a response's usage; 0 if it is missing."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return int(usage) if isinstance(usage, int | float) and 0 <= usage < _MOST_TOKENS else 0
