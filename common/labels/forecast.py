"""Forecasts the calls, tokens, time and dollars of a label job before its first call.

Tokens are estimated from characters, without a tokenizer. With the tokenizers of Llama-2, Llama-3,
GPT-4o and DeepSeek-V4, on 1,500 sentences each of Common Voice and ELTeC (novels), the estimate is
within 11 % in English, French, German and Spanish. On Django's messages in 40 languages it is
mostly within 30 % in other European languages, Chinese, Japanese and Korean; in others, where
vocabularies differ more, it is between a third and double.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.examples import Examples
from common.prices.prices import Price
from common.records import LabelRow
from common.settings import Settings
from common.tasks.task import Task
from common.teacher.requests import bound_prompts, get_contents, make_request

_LETTERS = ((0x80, "ascii"), (0x370, "accented"), (0x400, "other"), (0x530, "cyrillic"))
"""Kinds of characters, by the code point at which they end; all after the last are other."""
_TOKENS_PER_CHARACTER = {
    # Accented letters, 1 to 3 % of French, German and Spanish, also stand for the words around
    # them, which have a third more tokens than English ones.
    "small": {"ascii": 1 / 4.0, "accented": 3.5, "cyrillic": 0.48, "other": 1.2},
    "large": {"ascii": 1 / 4.25, "accented": 2.25, "cyrillic": 0.35, "other": 0.7},
}
"""By size of the vocabulary; fitted to the texts above."""
_SMALL_VOCABULARY = re.compile(
    r"llama-?2|codellama|tinyllama|vicuna|mistral-7b|mixtral|phi-3", re.IGNORECASE
)
"""Models with a vocabulary of 32,000 tokens; later ones have 100,000 and more."""
_MESSAGE_TOKENS = 5
"""What a chat template adds to a message (ChatML and Llama-3 5, Llama-2 6, GPT-4o 3)."""
_FIRST_TOKEN_SECONDS = 0.5
_SECONDS_PER_TOKEN = 0.02
"""Assumed for a hosted model: half a second to the first token, then 50 tokens per second."""
_SAMPLE_TEXTS = 2000
"""The number of evenly spread texts whose characters are counted by kind."""


@dataclass(frozen=True)
class Forecast:
    """The estimated sums of all calls.

    `seconds` is the minimum that the limits allow, at `latency_seconds` per call. Dollars are None
    if the price is unknown, and assume no cached prompts and no retries; `worst_dollars` is an
    upper bound, see `bound_prompt_tokens`.
    """

    calls: int
    prompt_tokens: int
    completion_tokens: int
    latency_seconds: float
    seconds: float
    dollars: float | None
    worst_dollars: float | None


def make_forecast(
    settings: Settings,
    task: Task,
    examples: Examples,
    price: Price | None,
    labelled: Sequence[LabelRow] = (),
) -> Forecast:
    """Forecasts `label.samples` calls for each example, none of which is blank.

    The usage of `labelled` rows corrects the estimate, and so tells of reasoning.
    """
    teacher, samples = settings.teacher, settings.label.samples
    calls = samples * len(examples)
    factors = _measure(settings, task, labelled)
    texts = [example.text for example in examples.first]
    tokens = _count_tokens(settings, task, texts, examples.characters)
    counts = zip(tokens, factors, strict=True)
    prompt_tokens, completion_tokens = (round(samples * count * f) for count, f in counts)
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
        prompts = int(bound_prompts(teacher, task, examples.sizes).sum())
        worst_dollars = samples * price.worst_cost(prompts, len(examples) * teacher.max_tokens)
    return Forecast(
        calls, prompt_tokens, completion_tokens, latency, seconds, dollars, worst_dollars
    )


def _measure(settings: Settings, task: Task, labelled: Sequence[LabelRow]) -> tuple[float, float]:
    """By what factors the labelled rows' prompts and completions have missed their estimates."""
    rows = [row for row in labelled if row.samples and row.prompt_tokens]
    if not rows:
        return 1.0, 1.0
    texts = [row.text for row in rows]
    prompts, completions = _count_tokens(settings, task, texts, np.array(list(map(len, texts))))
    samples = sum(row.samples for row in rows) / len(rows)
    return (
        sum(row.prompt_tokens for row in rows) / max(prompts * samples, 1),
        sum(row.completion_tokens for row in rows) / max(completions * samples, 1),
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
    """The minimum seconds that the limits allow (None: no limit); `burst` calls start at once."""
    return max(
        60 * max(0, calls - burst) / requests_per_minute if requests_per_minute else 0.0,
        60 * tokens / tokens_per_minute if tokens_per_minute else 0.0,
        calls * latency_seconds / concurrency,
    )


def estimate_tokens(text: str, model: str) -> float:
    """Estimates a text's tokens from the kinds of its characters."""
    return _weigh(text, _find_rates(model))


def _find_rates(model: str) -> dict[str, float]:
    return _TOKENS_PER_CHARACTER["small" if _SMALL_VOCABULARY.search(model) else "large"]


def _weigh(text: str, rates: dict[str, float]) -> float:
    return sum(n * rates[_find_kind(character)] for character, n in Counter(text).items())


def _find_kind(character: str) -> str:
    return next((kind for end, kind in _LETTERS if ord(character) < end), "other")


def _count_tokens(
    settings: Settings, task: Task, texts: Sequence[str], characters: NDArray[Any]
) -> tuple[int, int]:
    """Estimates the tokens of prompts and of responses, for one call per text.

    `texts` are some of those that have so many `characters`.
    """
    model, max_tokens = settings.teacher.model, settings.teacher.max_tokens
    sample = "".join(texts[:: len(texts) // _SAMPLE_TEXTS + 1])
    rate = estimate_tokens(sample, model) / max(len(sample), 1)
    fixed, places = _split_prompt(settings, task)
    fixed_tokens = sum(estimate_tokens(content, model) + _MESSAGE_TOKENS for content in fixed)
    text_tokens = rate * characters
    label, ratio = _expect_label(task, model)
    completions = np.minimum(max_tokens, label + ratio * text_tokens).sum()
    prompts = len(characters) * fixed_tokens + places * text_tokens.sum()
    return round(float(prompts)), round(float(completions))


def _expect_label(task: Task, model: str) -> tuple[float, float]:
    """Estimates a response's tokens: a constant, and a factor on its text's tokens.

    From the task: the mean allowed label; else the ratio of few-shot labels to their texts; else
    the text's length. One token ends a response.
    """
    rules = task.label_rules
    if rules.allowed:
        return 1 + fmean(estimate_tokens(label, model) for label in rules.allowed), 0.0
    rates = _find_rates(model)
    rates = rates | {"accented": rates["ascii"]}  # too few words for the share of accents
    texts = sum(_weigh(shot.text, rates) for shot in task.few_shot)
    labels = sum(_weigh(shot.label, rates) for shot in task.few_shot)
    ratio = labels / texts if texts else 1.0
    return 1.0, min(max(ratio, rules.min_length_ratio), rules.max_length_ratio)


def _split_prompt(settings: Settings, task: Task) -> tuple[list[str], int]:
    """The constant parts of a request, and how often it contains the text."""
    fixed = get_contents(make_request(settings.teacher, task, ""))
    with_text = get_contents(make_request(settings.teacher, task, "x"))
    return fixed, len("".join(with_text)) - len("".join(fixed))


def format_forecast(forecast: Forecast, settings: Settings, spent_usd: float = 0.0) -> str:
    """The forecast as a table; `spent_usd` is what the run has cost so far."""
    rows = [
        ("calls", f"{forecast.calls:,}"),
        (
            "tokens",
            f"about {forecast.prompt_tokens:,} in, {forecast.completion_tokens:,} out "
            "(estimated from the characters)",
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
        rows.insert(-1, ("spent", f"{_format_dollars(spent_usd)} by this run so far"))
    return "\n".join(f"{name:8}{value}" for name, value in rows)


def _format_cost(forecast: Forecast, model: str) -> str:
    if forecast.dollars is None or forecast.worst_dollars is None:
        return f"unknown: no price for {model!r}; DISTILL_TEACHER__PRICES names a file with prices"
    dollars, worst = map(_format_dollars, (forecast.dollars, forecast.worst_dollars))
    return f"about {dollars}, at most {worst}"


def _format_cap(forecast: Forecast, cap: float | None, spent_usd: float) -> str:
    if cap is None:
        return "none (DISTILL_LABEL__MAX_COST_USD)"
    if forecast.dollars is None or forecast.worst_dollars is None:
        return f"{_format_dollars(cap)}: needs a price, or replies that tell their cost"
    left = max(0.0, cap - spent_usd)
    if forecast.dollars > left:
        calls = f"{int(forecast.calls * left / forecast.dollars):,} of {forecast.calls:,} calls"
        return f"{_format_dollars(cap)}: too low, reached after about {calls}"
    certainty = "certainly" if forecast.worst_dollars <= left else "by this forecast"
    return f"{_format_dollars(cap)}: enough, {certainty}"


def _format_dollars(dollars: float) -> str:
    return f"${dollars:,.2f}" if dollars >= 0.1 or not dollars else f"${dollars:.2g}"


def _format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
