import json
import random
import timeit
import tomllib
from pathlib import Path

import pytest

from common.errors import InputError, SettingsError
from common.prices.prices import Price, find_price, require_price
from common.sections import TeacherSettings
from common.tasks.task import load_task
from common.teacher.requests import bound_prompt_tokens

TOGETHER = "https://api.together.xyz/v1"
LLAMA = "meta-llama/Llama-3.3-70B-Instruct-Turbo"


def find(model, url="https://api.openai.com/v1", **own):
    return find_price(TeacherSettings(model=model, base_url=url, **own))


def get_rates(price):
    return price.input, price.output, price.cached_input


def write(text):
    Path("prices.toml").write_text(text, "utf-8")
    return {"prices": "prices.toml"}


@pytest.mark.parametrize(
    ("model", "url", "price"),
    [
        ("gpt-4o", "https://api.openai.com/v1", Price(2.5, 10, 1.25)),
        ("gpt-4o-2024-08-06", "https://api.openai.com/v1", Price(2.5, 10, 1.25)),
        ("gpt-4o-2024-05-13", "https://api.openai.com/v1", Price(5, 15, 5)),
        ("gpt-4o-mini-2024-07-18", "https://gateway.example/v1", Price(0.15, 0.6, 0.075)),
        ("meta-llama/Llama-2-70b-chat-hf", "http://localhost:8000/v1", Price(0.9, 0.9, 0.9)),
        (LLAMA, TOGETHER, Price(0.88, 0.88, 0.88)),
        (LLAMA, "https://API.together.ai/v1", Price(0.88, 0.88, 0.88)),
        ("openai/gpt-oss-120b", "https://api.groq.com/openai/v1", Price(0.15, 0.6, 0.075)),
        ("openai/gpt-oss-120b", TOGETHER, Price(0.15, 0.6, 0.15)),
        ("stand-in", "builtin", Price(0, 0, 0)),
    ],
)
def test_known_prices(model, url, price):
    assert get_rates(find(model, url)) == get_rates(price)


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("nonsense", "https://api.openai.com/v1"),
        ("gpt-4o-2024-08-06-custom", "https://api.openai.com/v1"),
        ("ft:gpt-4o-2024-08-06:me", "https://api.openai.com/v1"),
        ("gpt-oss-120b", "http://localhost:8000/v1"),
        ("gemma3", "http://localhost:11434/v1"),
        (LLAMA, "https://elsewhere.example/v1"),
        (LLAMA, "https://elsewhere.example/api.together.xyz/v1"),
        (LLAMA, "http://localhost:8000/v1"),
        ("stand-in", "http://127.0.0.1:8000/v1"),
    ],
)
def test_what_is_not_listed_is_unknown_and_not_free(model, url):
    assert find(model, url) is None


OWN = """
[[price]]
model = "mine"
input = 1
output = 2.5
cached_input = 0.25

[[price]]
model = "gpt-4o"
input = 7
output = 8

[[price]]
model = "gpt-4o"
host = "*.example"
input = 3
output = 4
"""


@pytest.mark.parametrize(
    ("model", "url", "price"),
    [
        ("mine", "http://localhost/v1", Price(1, 2.5, 0.25)),
        ("gpt-4o", "https://api.openai.com/v1", Price(7, 8, 7)),
        ("gpt-4o", "https://proxy.example/v1", Price(3, 4, 3)),
        ("gpt-4o-2024-08-06", "https://proxy.example/v1", Price(3, 4, 3)),
        ("gpt-4o-2024-05-13", "https://proxy.example/v1", Price(3, 4, 3)),
        ("stand-in", "builtin", Price(0, 0, 0)),
    ],
)
def test_a_file_of_the_users_goes_first_and_the_others_stay(model, url, price):
    assert get_rates(find(model, url, **write(OWN))) == get_rates(price)
    assert find("gpt-4.1", **write(OWN)).output == 8


def test_a_price_may_depend_on_length_service_tier_and_lane():
    price = find("gpt-5.4")
    assert price.cost(1000, 100) == pytest.approx((1000 * 2.5 + 100 * 15) / 1e6)
    assert price.cost(300_000, 100) == pytest.approx((300_000 * 5 + 100 * 22.5) / 1e6)
    assert price.cost(1000, 100, tier="flex") == pytest.approx(price.cost(1000, 100) / 2)
    assert price.cost(1000, 100, tier="batch") == pytest.approx(price.cost(1000, 100) / 2)
    assert price.cost(1000, 100, tier="another") == price.cost(1000, 100)
    assert price.worst_cost(1000, 100, "priority") == pytest.approx(2 * price.cost(1000, 100))
    assert price.worst_cost(1000, 100, "flex") == price.cost(1000, 100)
    assert price.worst_cost(1000, 100, "batch") == price.cost(1000, 100, tier="batch")


def test_a_file_s_batches_cost_half_unless_it_says_otherwise():
    price = find("mine", "http://localhost/v1", **write(OWN))
    assert price.cost(100, 10, tier="batch") == pytest.approx(price.cost(100, 10) / 2)
    entry = '[[price]]\nmodel = "x"\ninput = 4\noutput = 8\nbatch_input = 3\n'
    price = find("x", "http://localhost/v1", **write(entry))
    assert price.cost(100, 10, tier="batch") == pytest.approx((100 * 3 + 10 * 4) / 1e6)


def test_tokens_that_a_cache_takes_in_have_a_price_of_their_own():
    price = find("claude-sonnet-4-5", "https://api.anthropic.com/v1")
    assert price.cost(100, 0, 40, 50) == pytest.approx((10 * 3 + 40 * 0.3 + 50 * 3.75) / 1e6)
    assert price.worst_cost(100, 0) == pytest.approx(100 * 3.75 / 1e6)


def test_a_file_in_an_object_store(bucket):
    import fsspec

    with fsspec.open(f"{bucket}/prices.toml", "w") as file:
        file.write(OWN)
    assert get_rates(find("mine", prices=f"{bucket}/prices.toml")) == (1, 2.5, 0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[price]]\nmodel = ", "prices.toml.*not valid TOML"),
        ("\udcff", "prices.toml.*not valid TOML"),
        ("", "prices.toml.*price is missing.*begins with"),
        ("[[prices]]\nmodel = 'a'", r"prices=\[.*no such field.*\[\[price\]\]"),
        ("price = 3", "price=3.*list"),
        ("price = [3]", r"price.*3"),
        (
            OWN + "[[price]]\nmodel='a'\ninput=1",
            r"entry 4 \(model 'a'\): output is missing.*million",
        ),
        (
            "[[price]]\nmodel='a'\ninput=1\noutput=1\ncached=1",
            r"entry 1 \(model 'a'\): cached=1: no such field.*cached_input",
        ),
        ("[[price]]\nmodel='a'\ninput=-1\noutput=1", "model 'a'.*input=-1: .*greater"),
        ("[[price]]\nmodel='a'\ninput=1\noutput='$2'", r"output='\$2'.*number"),
        ("[[price]]\nmodel='a'\ninput=1\noutput=true", "output=True.*number"),
        ("[[price]]\nmodel='a'\ninput=1\noutput=inf", "output=inf.*finite"),
        ("[[price]]\nmodel='a'\ninput=1\noutput=nan", "output=nan"),
        ("[[price]]\nmodel=4\ninput=1\noutput=1", "model=4.*string"),
        ("[[price]]\ninput=1\noutput=1", r"entry 1 \(model None\): model is missing"),
        (
            "[[price]]\nmodel='a'\ninput=1\noutput=1\nhost='https://x.y/v1'",
            "host='https://x.y/v1'.*pattern",
        ),
        ("[[price]]\nmodel='a'\ninput=1\noutput=1\n" * 2, "'a' has 2 entries for host"),
    ],
)
def test_a_wrong_file_is_told(text, message):
    Path("prices.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as info:
        find("gpt-4o", prices="prices.toml")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("path", ["absent.toml", "s3://no-such-bucket-of-ours/x.toml", "."])
def test_an_unreadable_file_is_told(path, request):
    if path.startswith("s3"):
        request.getfixturevalue("bucket")
    with pytest.raises(InputError, match=r"DISTILL_TEACHER__PRICES.*cannot be read") as info:
        find("gpt-4o", prices=path)
    assert path in str(info.value)


def test_a_cap_with_an_unknown_price_says_how_to_add_one():
    with pytest.raises(SettingsError) as info:
        require_price(
            None, TeacherSettings(model='my "best" model', base_url="http://localhost:1/v1")
        )
    message, _, example = str(info.value).partition("\n")
    for part in ("DISTILL_LABEL__MAX_COST_USD", "DISTILL_TEACHER__PRICES", "localhost:1", "best"):
        assert part in message
    assert tomllib.loads(example)["price"][0]["model"] == 'my "best" model'
    assert len(example.splitlines()) == 4
    assert get_rates(find('my "best" model', **write(example))) == (0.5, 1.5, 0.5)


def test_a_cap_with_a_known_price():
    require_price(Price(2.5, 10, 1.25), TeacherSettings(model="gpt-4o"))


@pytest.mark.parametrize(
    ("tokens", "dollars"),
    [
        ((1_000_000, 0), 2.5),
        ((0, 1_000_000), 10),
        ((1_000_000, 0, 1_000_000), 1.25),
        ((1000, 100, 400), 0.003),  # 600 * 2.5 + 400 * 1.25 + 100 * 10 = 3,000 millionths
        ((0, 0, 0), 0),
        ((100, 0, 400), 0.0005),  # a server that counts cached tokens apart: 400 * 1.25
    ],
)
def test_the_cost_of_a_call(tokens, dollars):
    assert Price(2.5, 10, 1.25).cost(*tokens) == pytest.approx(dollars)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "abc"}, 3 + 16 + 512),
        ({"prompt": "é€😀"}, 2 + 3 + 4 + 16 + 512),
        ({"prompt": "\ud83d"}, 3 + 16 + 512),
        (
            {"messages": [{"role": "system", "content": "Hi"}, {"role": "user", "content": "ü"}]},
            2 + 2 + 2 * 16 + 512,
        ),
    ],
)
def test_the_worst_cost_counts_bytes_and_an_allowance(body, tokens):
    assert bound_prompt_tokens(body) == tokens
    assert Price(1, 0, 1).worst_cost(tokens, 100) == pytest.approx(tokens / 1e6)
    assert Price(1, 2, 3).worst_cost(tokens, 100) == pytest.approx((3 * tokens + 200) / 1e6)


def test_the_worst_cost_is_above_what_a_tiny_vocabulary_needs():
    """1,024 tokens, mostly bytes: no model of today cuts text into smaller pieces."""
    tokenizers = pytest.importorskip("tokenizers")
    path = Path(__file__).parents[1] / "common/builtin/student/tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(chr(rng.choice([0x20, 0xE9, 0x4E00, 0x1F600]) + rng.randrange(60)) * 3)
        marked = f"<|im_start|>user\n{text}<|im_end|>\n"
        used = len(tokenizer.encode(marked).ids)
        assert used <= bound_prompt_tokens({"messages": [{"content": text}]})


def test_the_worst_cost_is_quick():
    body = {"messages": load_task("gec").make_messages("Ich habe gestern ein Buch gekauft.")}
    seconds = min(timeit.repeat(lambda: bound_prompt_tokens(body), number=100, repeat=5)) / 100
    assert seconds < 50e-6, json.dumps(body)


def test_every_built_in_entry_costs_less_when_cached():
    path = Path(__file__).parents[1] / "common/prices/prices.toml"
    for entry in tomllib.loads(path.read_text("utf-8"))["price"]:
        assert 0 <= entry.get("cached_input", entry["input"]) <= entry["input"] < 100, entry
        assert entry["output"] >= entry["input"], entry
