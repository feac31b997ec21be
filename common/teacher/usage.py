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
    prompt, completion = (_read_count(usage, f"{name}_tokens") for name in ("prompt", "completion"))
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
    """The dollars that a response tells: OpenRouter's cost, with that of a key of one's own; xAI's.

    Raises one of WRONG_SHAPE if it is no number.
    """
    if isinstance(ticks := usage.get("cost_in_usd_ticks"), int | float):
        return float(ticks) / _TICKS_PER_USD
    cost, details = usage.get("cost"), usage.get("cost_details")
    if not isinstance(cost, int | float) or not 0 <= cost < float("inf"):
        return None
    upstream = details.get("upstream_inference_cost") if isinstance(details, dict) else None
    return float(cost) + float(upstream or 0 if usage.get("is_byok") else 0)


def _read_count(usage: Any, *path: str) -> int:
    """A number of tokens in a response's usage; 0 if it is missing."""
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return int(usage) if isinstance(usage, int | float) and 0 <= usage < 2**63 else 0
