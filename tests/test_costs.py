"""What calls cost, by the usages that providers have documented, to the cent and beyond."""

import json

import pytest

from common.prices.prices import find_price
from common.sections import TeacherSettings
from common.teacher.costs import bound_rates, find_cost
from common.teacher.replies import Reply, read_answer

OPENAI, OPENROUTER = "https://api.openai.com/v1", "https://openrouter.ai/api/v1"
GEMINI = "https://generativelanguage.googleapis.com/v1beta/openai"


def make_reply(usage, **content):
    choice = {"message": {"content": "fine"}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": usage} | content
    return Reply("key", 200, json.dumps(body), 1, 0.5, 10_000)


def cost(url, model, usage, **content):
    reply = make_reply(usage, **content)
    price = find_price(TeacherSettings(base_url=url, model=model))
    return find_cost(price, reply, read_answer(reply), 100)


@pytest.mark.parametrize(
    ("url", "model", "usage", "dollars"),
    [
        # OpenAI: cached tokens are part of the prompt's, reasoning tokens of the completion's.
        (
            OPENAI,
            "gpt-5-mini",
            {
                "prompt_tokens": 2_000,
                "completion_tokens": 1_200,
                "total_tokens": 3_200,
                "prompt_tokens_details": {"cached_tokens": 1_024},
                "completion_tokens_details": {"reasoning_tokens": 1_024},
            },
            (976 * 0.25 + 1_024 * 0.025 + 1_200 * 2) / 1e6,
        ),
        # Anthropic's compatible layer: no details.
        (
            "https://api.anthropic.com/v1/",
            "claude-sonnet-4-5",
            {"prompt_tokens": 2_000, "completion_tokens": 500, "total_tokens": 2_500},
            (2_000 * 3 + 500 * 15) / 1e6,
        ),
        # Gemini's: thinking is in the total alone.
        (
            GEMINI,
            "gemini-2.5-flash",
            {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 620},
            (100 * 0.3 + 520 * 2.5) / 1e6,
        ),
        # xAI: likewise, with its own figure.
        (
            "https://api.x.ai/v1",
            "grok-4",
            {
                "prompt_tokens": 100,
                "completion_tokens": 20,
                "total_tokens": 420,
                "completion_tokens_details": {"reasoning_tokens": 300},
            },
            (100 * 3 + 320 * 15) / 1e6,
        ),
        (
            "https://api.x.ai/v1",
            "new",
            {"prompt_tokens": 1, "cost_in_usd_ticks": 37_756_000},
            37756e-7,
        ),
        # OpenRouter: the cost in dollars; with a key of one's own the provider's, too.
        (
            OPENROUTER,
            "any/model",
            {"prompt_tokens": 194, "completion_tokens": 2, "cost": 0.95},
            0.95,
        ),
        (
            OPENROUTER,
            "any/model",
            {
                "prompt_tokens": 194,
                "completion_tokens": 2,
                "cost": 0.05,
                "is_byok": True,
                "cost_details": {"upstream_inference_cost": 0.95},
            },
            1.0,
        ),
        # Groq and Together: plain.
        (
            "https://api.groq.com/openai/v1",
            "llama-3.3-70b-versatile",
            {
                "queue_time": 0.03,
                "prompt_tokens": 1_000,
                "completion_tokens": 500,
                "total_time": 1.1,
            },
            (1_000 * 0.59 + 500 * 0.79) / 1e6,
        ),
        (
            "https://api.together.xyz/v1",
            "meta-llama/Llama-3.3-70B-Instruct-Turbo",
            {"prompt_tokens": 1_000, "completion_tokens": 500, "total_tokens": 1_500},
            1_500 * 0.88 / 1e6,
        ),
        # vLLM, llama-server and Ollama: no price, no cost.
        (
            "http://localhost:8000/v1",
            "meta-llama/Llama-3.3-70B-Instruct",
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None},
            0,
        ),
        ("http://localhost:11434/v1", "llama3.2", {"prompt_tokens": 10, "completion_tokens": 5}, 0),
    ],
)
def test_recorded_usages_cost_what_the_provider_charges(url, model, usage, dollars):
    assert cost(url, model, usage) == pytest.approx(dollars, rel=1e-9)


def test_the_cheaper_tier_counts_where_the_reply_names_it():
    usage = {"prompt_tokens": 1_000, "completion_tokens": 100}
    standard = cost(OPENAI, "gpt-5.4", usage)
    assert cost(OPENAI, "gpt-5.4", usage, service_tier="flex") == pytest.approx(standard / 2)
    assert cost(OPENAI, "gpt-5.4", usage, service_tier="default") == pytest.approx(standard)


def test_a_gateway_s_header_precedes_the_table():
    reply = make_reply({"prompt_tokens": 1_000, "completion_tokens": 100})
    reply = Reply(**vars(reply) | {"cost_usd": 0.5})
    price = find_price(TeacherSettings(base_url=OPENAI, model="gpt-4o"))
    assert find_cost(price, reply, read_answer(reply), 100) == 0.5


def test_a_told_cost_bounds_an_unknown_price():
    reply = make_reply({"prompt_tokens": 100, "completion_tokens": 20, "cost": 0.01})
    bounds = bound_rates(reply, read_answer(reply))
    assert bounds == pytest.approx((0.0001, 0.0005))
    silent = make_reply({"prompt_tokens": 100})
    assert bound_rates(silent, read_answer(silent)) is None


def test_an_answer_without_usage_costs_at_most_its_worst():
    reply = make_reply(None)
    price = find_price(TeacherSettings(base_url=OPENAI, model="gpt-4o"))
    worst = find_cost(price, reply, read_answer(reply), 100)
    assert worst == pytest.approx((10_000 * 2.5 + 100 * 10) / 1e6)
