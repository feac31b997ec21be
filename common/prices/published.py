"""Published prices, from the package genai-prices."""

import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

from common.prices.prices import BATCH, Price
from common.sections import TeacherSettings

_VARIANTS = {
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    BATCH: {"processing": "batch"},
}
_SOLE_PROVIDERS = ("openai", "anthropic", "google", "x-ai")
_OPEN_WEIGHTS = re.compile(r"oss|gemma|grok-?[12]\b|embed", re.IGNORECASE)
"""Models of those that others serve, too, at prices of their own."""
_TOGETHER = "//api.together.ai/", "//api.together.xyz/"
"""A host that the package lacks, and its other name."""
_FINE_TUNED = re.compile(r"^ft[:-]|:ft[:-]")


def find_published(settings: TeacherSettings) -> Price | None:
    """The price in genai-prices: of the host, or on an unknown host of the sole provider."""
    model, url = settings.model, settings.base_url.lower().replace(*_TOGETHER)
    if _FINE_TUNED.search(model):
        return None
    places: list[tuple[str | None, str | None]] = [(None, url)]
    try:
        get_snapshot().find_provider(None, None, url)
    except LookupError:
        places = [(provider, None) for provider in _SOLE_PROVIDERS]
        if _OPEN_WEIGHTS.search(model):
            return None
    for place in places:
        with suppress(LookupError):
            return _convert(get_snapshot().find_provider_model(model, None, *place)[1])
    return None


def _convert(model: ModelInfo) -> Price | None:
    """A model's present prices; None if it has none for input or output."""
    now = datetime.now(UTC)
    standard = _convert_rates(model.get_prices(now))
    if standard is None:
        return None
    tiers = []
    for name, context in _VARIANTS.items():
        if any(variant.when == context for variant in model.price_variants or []):
            rates = _convert_rates(model.get_prices(now, context))
            tiers += [(name, rates)] if rates else []
    return replace(standard, tiers=tuple(tiers))


def _convert_rates(prices: ModelPrice) -> Price | None:
    names = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")
    values = [getattr(prices, name) for name in names]
    if values[0] is None or values[1] is None:
        return None
    steps = {t.start for value in values if isinstance(value, TieredPrices) for t in value.tiers}

    def make(tokens: int) -> Price:
        given, output, read, written = (_at(value, tokens) for value in values)
        assert given is not None and output is not None
        return Price(given, output, given if read is None else read, written)

    longer = tuple((start, make(start + 1)) for start in sorted(steps))
    return replace(make(0), longer=longer)


def _at(price: Decimal | TieredPrices | None, prompt_tokens: int) -> float | None:
    """A price for calls of this length."""
    if isinstance(price, TieredPrices):
        fitting = [tier.price for tier in price.tiers if prompt_tokens > tier.start]
        price = fitting[-1] if fitting else price.base
    return None if price is None else float(price)
