"""What a run of the label job will take, told before its first call: calls, tokens, time, dollars.

No tokenizer is loaded: tokens are guessed from characters. Measured with the tokenizers of Llama-2,
Llama-3, GPT-4o and DeepSeek-V4 on 1,500 sentences each of Common Voice and ELTeC (novels), the
guess is within 11 % in English, French, German and Spanish. On Django's messages in 40 languages it
is mostly within 30 % in other European languages, Chinese, Japanese and Korean; elsewhere
vocabularies differ so much that it may be a third of the truth, or double.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from common.prices.prices import Price
from common.settings import Settings
from common.tasks.model import Task
from common.teacher.requests import bound_prompt_tokens, get_contents

_LETTERS = ((0x80, "ascii"), (0x370, "accented"), (0x400, "other"), (0x530, "cyrillic"))
"""Kinds of characters, by the code point at which they end; what follows is other."""
_TOKENS_PER_CHARACTER = {
    # An accented letter stands for itself and for the words around it, which are not English:
    # French, German and Spanish have 1 to 3 % of them, and a third more tokens than English.
    "small": {"ascii": 1 / 4.0, "accented": 3.5, "cyrillic": 0.48, "other": 1.2},
    "large": {"ascii": 1 / 4.25, "accented": 2.25, "cyrillic": 0.35, "other": 0.7},
}
"""By size of the vocabulary; fitted to the texts named above."""
_SMALL_VOCABULARY = re.compile(
    r"llama-?2|codellama|tinyllama|vicuna|mistral-7b|mixtral|phi-3", re.IGNORECASE
)
"""Models with 32,000 tokens; those since have 100,000 and more."""
_MESSAGE_TOKENS = 5
"""What a chat template puts around a message (ChatML and Llama-3 5, Llama-2 6, GPT-4o 3)."""
_FIRST_TOKEN_SECONDS = 0.5
_SECONDS_PER_TOKEN = 0.02
"""Assumed of a hosted model: half a second to the first token, then 50 tokens a second."""
_SAMPLE_TEXTS = 2000
"""Texts, evenly spread, whose characters are looked at; of the others only the length is."""


@dataclass(frozen=True)
class Forecast:
    """What all calls together will take, as far as can be told without asking.

    `seconds` is the least that the limits allow, at `latency_seconds` a call. Dollars are None if
    the price is unknown. They count on no cached prompt and no retry; `worst_dollars` is the sum of
    what no call can exceed, see `bound_prompt_tokens`.
    """

    calls: int
    prompt_tokens: int
    completion_tokens: int
    latency_seconds: float
    seconds: float
    dollars: float | None
    worst_dollars: float | None


def make_forecast(
    settings: Settings, task: Task, texts: Sequence[str], price: Price | None
) -> Forecast:
    """Forecasts asking for `texts`, each `label.samples` times; nobody is asked for a blank one."""
    teacher, samples = settings.teacher, settings.label.samples
    texts = [text for text in texts if text.strip()]
    calls = samples * len(texts)
    prompt_tokens, completion_tokens = (samples * n for n in _count_tokens(settings, task, texts))
    latency = _FIRST_TOKEN_SECONDS + _SECONDS_PER_TOKEN * completion_tokens / max(calls, 1)
    seconds = optimum_seconds(
        calls,
        prompt_tokens + completion_tokens,
        teacher.requests_per_minute,
        teacher.tokens_per_minute,
        latency,
        teacher.max_concurrency,
    )
    dollars = worst_dollars = None
    if price is not None:
        dollars = price.cost(prompt_tokens, completion_tokens)
        worst_dollars = samples * _sum_worst(settings, task, texts, price)
    return Forecast(
        calls, prompt_tokens, completion_tokens, latency, seconds, dollars, worst_dollars
    )


def optimum_seconds(
    calls: int,
    tokens: float,
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
    latency_seconds: float,
    concurrency: int,
    burst: int = 0,
) -> float:
    """The least time that the limits allow; None: no such limit. `burst` calls are free at once."""
    return max(
        60 * max(0, calls - burst) / requests_per_minute if requests_per_minute else 0.0,
        60 * tokens / tokens_per_minute if tokens_per_minute else 0.0,
        calls * latency_seconds / concurrency,
    )


def estimate_tokens(text: str, model: str) -> float:
    """About how many tokens a text has, by the kinds of its characters."""
    return _weigh(text, _find_rates(model))


def _find_rates(model: str) -> dict[str, float]:
    return _TOKENS_PER_CHARACTER["small" if _SMALL_VOCABULARY.search(model) else "large"]


def _weigh(text: str, rates: dict[str, float]) -> float:
    return sum(n * rates[_find_kind(character)] for character, n in Counter(text).items())


def _find_kind(character: str) -> str:
    return next((kind for end, kind in _LETTERS if ord(character) < end), "other")


def _count_tokens(settings: Settings, task: Task, texts: list[str]) -> tuple[int, int]:
    """About the prompts' and the responses' tokens, if each text is asked for once."""
    model, max_tokens = settings.teacher.model, settings.teacher.max_tokens
    sample = "".join(texts[:: len(texts) // _SAMPLE_TEXTS + 1])
    rate = estimate_tokens(sample, model) / max(len(sample), 1)
    fixed, places = _split_prompt(settings, task)
    fixed_tokens = sum(estimate_tokens(content, model) + _MESSAGE_TOKENS for content in fixed)
    text_tokens = [rate * len(text) for text in texts]
    label, ratio = _expect_label(task, model)
    completions = sum(min(max_tokens, label + ratio * tokens) for tokens in text_tokens)
    return round(len(texts) * fixed_tokens + places * sum(text_tokens)), round(completions)


def _expect_label(task: Task, model: str) -> tuple[float, float]:
    """The tokens of a response: those of any, and those for each token of its text.

    From the task alone: the mean of the labels allowed; else the few-shot labels' length to that of
    their texts; else as long as the text. One token ends a response.
    """
    rules = task.label_rules
    if rules.allowed:
        return 1 + fmean(estimate_tokens(label, model) for label in rules.allowed), 0.0
    rates = _find_rates(model)
    rates = rates | {"accented": rates["ascii"]}  # in so few words, one accent more says nothing
    texts = sum(_weigh(shot.text, rates) for shot in task.few_shot)
    labels = sum(_weigh(shot.label, rates) for shot in task.few_shot)
    ratio = labels / texts if texts else 1.0
    return 1.0, min(max(ratio, rules.min_length_ratio), rules.max_length_ratio)


def _sum_worst(settings: Settings, task: Task, texts: list[str], price: Price) -> float:
    """Dollars that asking for each text once cannot exceed: linear in the texts' bytes."""
    empty = bound_prompt_tokens(_make_body(settings, task, ""))
    per_byte = bound_prompt_tokens(_make_body(settings, task, "x")) - empty
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return price.worst_cost(
        len(texts) * empty + per_byte * size, len(texts) * settings.teacher.max_tokens
    )


def _split_prompt(settings: Settings, task: Task) -> tuple[list[str], int]:
    """What every request says whatever its text, and how often it says the text."""
    fixed = get_contents(_make_body(settings, task, ""))
    with_text = get_contents(_make_body(settings, task, "x"))
    return fixed, len("".join(with_text)) - len("".join(fixed))


def _make_body(settings: Settings, task: Task, text: str) -> dict[str, Any]:
    """The part of the request that is paid for by the token."""
    if settings.teacher.endpoint == "chat":
        return {"messages": task.make_messages(text)}
    return {"prompt": task.make_completion_prompt(text)}


def format_forecast(forecast: Forecast, settings: Settings, spent_usd: float = 0.0) -> str:
    """The forecast in a few lines for people; `spent_usd` is what the run has cost before."""
    rows = [
        ("calls", f"{forecast.calls:,}"),
        (
            "tokens",
            f"about {forecast.prompt_tokens:,} in, {forecast.completion_tokens:,} out "
            "(guessed from the characters)",
        ),
        (
            "time",
            f"at least {_format_seconds(forecast.seconds)}, if a call takes "
            f"{forecast.latency_seconds:.1f} s",
        ),
        ("cost", _format_cost(forecast, settings.teacher.model)),
        ("cap", _format_cap(forecast, settings.label.max_cost_usd, spent_usd)),
    ]
    if spent_usd:
        rows.insert(-1, ("spent", f"{_format_dollars(spent_usd)} by this run before"))
    return "\n".join(f"{name:8}{value}" for name, value in rows)


def _format_cost(forecast: Forecast, model: str) -> str:
    if forecast.dollars is None or forecast.worst_dollars is None:
        return f"unknown: no price for {model!r}; DISTILL_TEACHER__PRICES names a file with prices"
    dollars, worst = map(_format_dollars, (forecast.dollars, forecast.worst_dollars))
    return f"about {dollars}, {worst} at the very most"


def _format_cap(forecast: Forecast, cap: float | None, spent_usd: float) -> str:
    if cap is None:
        return "none (DISTILL_LABEL__MAX_COST_USD)"
    if forecast.dollars is None or forecast.worst_dollars is None:
        return f"{_format_dollars(cap)}: cannot be kept without a price"
    left = max(0.0, cap - spent_usd)
    if forecast.dollars > left:
        calls = int(forecast.calls * left / forecast.dollars)
        return (
            f"{_format_dollars(cap)}: too low, reached after about {calls:,} of "
            f"{forecast.calls:,} calls"
        )
    certainty = "surely" if forecast.worst_dollars <= left else "by this forecast"
    return f"{_format_dollars(cap)}: enough, {certainty}"


def _format_dollars(dollars: float) -> str:
    return f"${dollars:,.2f}" if dollars >= 0.1 or not dollars else f"${dollars:.2g}"


def _format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
