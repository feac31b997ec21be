import os
import time
from pathlib import Path

import pytest

from common.data.examples import Examples
from common.labels.forecast import Forecast, estimate_tokens, format_forecast, make_forecast
from common.labels.forecast import optimum_seconds as optimum
from common.prices.prices import Price, find_price
from common.records import Example, hash_text
from common.settings import Settings
from common.tasks.task import load_task
from common.teacher.requests import bound_prompt_tokens

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))

SYSTEM = "[teacher]\nsystem = 'Say yes.'\n"  # 8 characters: 2 tokens of Llama-2's, and 5 around it
SHOT = "[[few_shot]]\ntext = 'abcdefgh'\nlabel = 'abcd'\n"  # 2 tokens and 1, in two messages


def make_examples(texts):
    examples = Examples.of(Example(hash_text(text), text) for text in texts)
    return examples.select(~examples.mark_blank())


def make(toml, name="tiny"):
    Path("task.toml").write_text(f"name = '{name}'\n{toml}", "utf-8")
    return load_task("./task.toml")


def configure(samples=1, max_cost_usd=None, **teacher):
    return Settings(
        teacher={"model": "llama-2", "base_url": "http://localhost/v1", **teacher},
        label={"samples": samples, "max_cost_usd": max_cost_usd},
    )


@pytest.mark.parametrize(
    ("args", "seconds"),
    [
        ((600, 0, 1200, None, 0, 64), 30),
        ((600, 0, 1200, None, 0, 64, 100), 25),
        ((50, 0, 1200, None, 0, 64, 100), 0),
        ((600, 300_000, 1200, 60_000, 0, 64), 300),
        ((600, 0, None, None, 0.5, 64), 4.6875),
        ((600, 60_000, 60_000, 6_000_000, 0.5, 10), 30),
        ((0, 0, 1200, 60_000, 1, 64), 0),
        ((600, 60_000, None, None, 0, 1), 0),
    ],
)
def test_the_optimum_is_the_tightest_limit(args, seconds):
    assert optimum(*args) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "model", "tokens"),
    [
        ("", "gpt-4o", 0),
        ("abcd" * 4, "meta-llama/Llama-2-70b-chat-hf", 4),
        ("abcd" * 4, "mistralai/Mixtral-8x7B-Instruct-v0.1", 4),
        ("a" * 17, "gpt-4o", 4),
        ("aéa", "llama2", 0.5 + 3.5),
        ("жж", "gpt-4o", 0.7),
        ("文字", "gpt-4o", 1.4),
        ("文字", "Llama-2", 2.4),
        ("λ’", "gpt-4o", 1.4),
    ],
)
def test_tokens_are_guessed_by_script_and_vocabulary(text, model, tokens):
    assert estimate_tokens(text, model) == pytest.approx(tokens)


@pytest.mark.parametrize(
    ("toml", "settings", "texts", "tokens"),
    [
        # two messages with 5 tokens around each; the response is as long as the text, and ends
        (SYSTEM, {}, ["abcd" * 10], (2 + 10 + 10, 10 + 1)),
        (SYSTEM, {}, ["abcd" * 10, "abcd" * 30], (2 * 12 + 40, 40 + 2)),
        (SYSTEM, {"samples": 3}, ["abcd" * 10], (3 * 22, 3 * 11)),
        ("", {}, ["abcd" * 10], (5 + 10, 11)),
        # few-shot labels half as long as their texts, which stand in the prompt, too
        (SYSTEM + SHOT, {}, ["abcd" * 10], (2 + 2 + 1 + 4 * 5 + 10, 5 + 1)),
        # as long as their texts, one accent apart
        ("[[few_shot]]\ntext = 'abcd'\nlabel = 'ábcd'", {}, ["abcd" * 10], (30, 11)),
        (SYSTEM + SHOT + "[label_rules]\nmin_length_ratio = 0.8", {}, ["abcd" * 10], (35, 9)),
        (SYSTEM + "[label_rules]\nmax_length_ratio = 0.3", {}, ["abcd" * 10], (22, 4)),
        # the mean of the allowed labels, whatever the text
        (SYSTEM + SHOT + "[label_rules]\nallowed = ['good', 'bad news']", {}, ["abcd"], (26, 2)),
        (SYSTEM, {"max_tokens": 4}, ["abcd" * 10, "abcd"], (12 * 2 + 11, 4 + 2)),
        ("[teacher]\nuser = '{text}|{text}{text}:'", {}, ["abcd" * 10], (36, 11)),
        # "Say yes.\n\n" and "\n": 11 characters around the text
        (SYSTEM, {"endpoint": "completions"}, ["abcd" * 10], (18, 11)),
        (SYSTEM, {}, ["  ", "", "\n"], (0, 0)),
        (SYSTEM, {}, [], (0, 0)),
    ],
)
def test_tokens_of_a_task(toml, settings, texts, tokens):
    forecast = make_forecast(configure(**settings), make(toml), make_examples(texts), None)
    assert (forecast.prompt_tokens, forecast.completion_tokens) == tokens
    assert forecast.calls == settings.get("samples", 1) * sum(bool(t.strip()) for t in texts)


def test_dollars_and_seconds():
    settings = configure(samples=2, requests_per_minute=60, max_tokens=100)
    texts = [f"{n:04}{'abcd' * 9}" for n in range(100)]
    forecast = make_forecast(settings, make(SYSTEM), make_examples(texts), Price(1, 10, 1))
    assert forecast == Forecast(
        calls=200,
        prompt_tokens=4400,
        completion_tokens=2200,
        latency_seconds=pytest.approx(0.5 + 11 * 0.02),
        seconds=pytest.approx(200),
        dollars=pytest.approx(0.0264),
        # bytes, allowance for two messages and the request, and all that a response may be
        worst_dollars=pytest.approx(200 * ((48 + 2 * 16 + 512) + 10 * 100) / 1e6),
    )


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_the_worst_case_is_the_sum_of_the_calls(endpoint):
    settings, price = configure(samples=2, endpoint=endpoint), Price(1, 2, 0.5)
    task, texts = load_task("gec"), ["Ich habe gestern.", "Où est-il ?", "{text} 😀", "", "a" * 999]
    bodies = [
        {"messages": task.make_messages(text)}
        if endpoint == "chat"
        else {"prompt": task.make_completion_prompt(text)}
        for text in texts
        if text
    ]
    worst = 2 * sum(price.worst_cost(bound_prompt_tokens(body), 512) for body in bodies)
    forecast = make_forecast(settings, task, make_examples(texts), price)
    assert forecast.worst_dollars == pytest.approx(worst)
    assert forecast.dollars < forecast.worst_dollars


def test_without_a_price_there_are_no_dollars():
    forecast = make_forecast(configure(), make(SYSTEM), make_examples(["abcd"]), None)
    assert forecast.dollars is forecast.worst_dollars is None


@pytest.mark.parametrize("words", [8, 300])
def test_a_hundred_thousand_texts_take_a_moment(words):
    texts = [f"{'Der Junge geht in die Schule. ' * (words // 6)}{n}" for n in range(100_000)]
    started = time.process_time()
    forecast = make_forecast(configure(), load_task("gec"), make_examples(texts), Price(1, 1, 1))
    assert time.process_time() - started < 2
    whole = sum(len(text) for text in texts) / 4
    assert forecast.completion_tokens == pytest.approx(whole, rel=0.3)


def test_the_sample_is_spread_evenly():
    texts = [f"{n:05}{character * 35}" for character in "a文" for n in range(30_000)]
    forecast = make_forecast(configure(max_tokens=10_000), make(""), make_examples(texts), None)
    exact = 60_000 * 5 + 30_000 * (40 / 4 + 5 / 4 + 35 * 1.2)
    assert forecast.prompt_tokens == pytest.approx(exact, rel=0.01)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs the data beside the checkout")
@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("meta-llama/Llama-2-70b-chat-hf", (1_125_843, 80_264)),
        ("gpt-4o", (890_919, 64_950)),
    ],
)
def test_real_sentences_against_the_models_own_tokenizers(model, tokens):
    """The tokens: those of 5,000 rows by seed, with the chat template, and of their corrections."""
    import random

    import pyarrow.parquet as pq

    rows = pq.read_table(SHARED / "multilingual_gec" / "train.parquet").to_pylist()
    random.Random(1).shuffle(rows)
    texts = [row["modified"].removeprefix("fix grammar: ") for row in rows[:5000]]
    settings = configure(model=model)
    price = find_price(settings.teacher)
    forecast = make_forecast(settings, load_task("gec"), make_examples(texts), price)
    assert forecast.prompt_tokens == pytest.approx(tokens[0], rel=0.15)
    assert forecast.completion_tokens == pytest.approx(tokens[1], rel=0.1)
    assert price.cost(*tokens) <= forecast.worst_dollars
    if "Llama" in model:  # $1.09 by its own tokenizer; the reference's 5,000 labels cost $1.2
        assert forecast.dollars == pytest.approx(1.09, rel=0.05)


def forecast_of(dollars, worst):
    return Forecast(5000, 1_085_907, 90_823, 0.863, 250.4, dollars, worst)


def test_the_forecast_in_lines():
    settings = configure(max_cost_usd=2)
    assert format_forecast(forecast_of(1.0591, 8.1921), settings, 0.5).splitlines() == [
        "calls   5,000",
        "tokens  about 1,085,907 in, 90,823 out (estimated from the characters)",
        "time    at least 4 min 10 s, if a call takes 0.9 s",
        "cost    about $1.06, at most $8.19",
        "spent   $0.50 by this run so far",
        "cap     $2.00: enough, by this forecast",
    ]


@pytest.mark.parametrize(
    ("dollars", "worst", "cap", "spent", "line"),
    [
        (1.0, 8.0, None, 0, "none (DISTILL_LABEL__MAX_COST_USD)"),
        (1.0, 8.0, 8, 0, "$8.00: enough, certainly"),
        (1.0, 8.0, 8, 1, "$8.00: enough, by this forecast"),
        (1.0, 8.0, 0.25, 0, "$0.25: too low, reached after about 1,250 of 5,000 calls"),
        (1.0, 8.0, 1.5, 1, "$1.50: too low, reached after about 2,500 of 5,000 calls"),
        (1.0, 8.0, 1.5, 2, "$1.50: too low, reached after about 0 of 5,000 calls"),
        (0.0, 0.0, 1.5, 2, "$1.50: enough, certainly"),
        (None, None, 1.5, 0, "$1.50: needs a price, or replies that tell their cost"),
    ],
)
def test_whether_the_cap_suffices(dollars, worst, cap, spent, line):
    text = format_forecast(forecast_of(dollars, worst), configure(max_cost_usd=cap), spent)
    assert text.splitlines()[-1] == f"cap     {line}"


@pytest.mark.parametrize(
    ("dollars", "worst", "line"),
    [
        (0.0, 0.0, "about $0.00, at most $0.00"),
        (0.00123, 0.0456, "about $0.0012, at most $0.046"),
        (1234.5, 99999.0, "about $1,234.50, at most $99,999.00"),
        (None, None, "unknown: no price for 'llama-2'; DISTILL_TEACHER__PRICES names a file"),
    ],
)
def test_the_cost_line(dollars, worst, line):
    lines = format_forecast(forecast_of(dollars, worst), configure()).splitlines()
    assert lines[3].startswith(f"cost    {line}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s,"), (59.6, "1 min 0 s,"), (3599, "59 min 59 s,"), (90_061, "25 h 1 min,")],
)
def test_the_time_line(seconds, text):
    forecast = Forecast(1, 1, 1, 1, seconds, None, None)
    assert f"at least {text}" in format_forecast(forecast, configure())
