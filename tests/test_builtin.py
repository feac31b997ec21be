import asyncio
import http.client
import json
from urllib.parse import urlsplit

import pytest
from aiohttp.test_utils import TestClient, TestServer

from common.builtin.correction import correct
from common.builtin.mistakes import PREFIX, make_rows
from common.builtin.teacher import StandIn, running_stand_in
from common.tasks.task import load_task

WRONG, RIGHT = "the dog sees a apple", "The dog sees an apple."


@pytest.fixture(scope="module")
def rows():
    return {split: list(make_rows(split)) for split in ("train", "test")}


def test_the_same_seed_gives_the_same_rows(rows):
    assert list(make_rows("test")) == rows["test"]
    assert list(make_rows("test", seed=1)) != rows["test"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_have_the_schema_of_the_real_data_set(rows, split):
    names = {"lang", "sentence", "modified", "transformation", "sec_transformation"}
    for row in rows[split]:
        assert row.keys() == names
        assert row["modified"].startswith(PREFIX)
        is_clean = row["modified"] == PREFIX + row["sentence"]
        assert is_clean or row["transformation"] != "no_transformation"


def test_about_six_percent_are_clean(rows):
    clean = sum(row["modified"] == PREFIX + row["sentence"] for row in rows["train"])
    assert clean / len(rows["train"]) == pytest.approx(0.06, abs=0.01)


@pytest.mark.parametrize("language", ["en", "fr", "de", "es"])
def test_every_language_has_its_share(rows, language):
    for split in rows.values():
        share = sum(row["lang"] == language for row in split) / len(split)
        assert share == pytest.approx(0.25, abs=0.05)


def test_no_test_text_stands_in_train(rows):
    train, test = ({row["modified"] for row in rows[split]} for split in ("train", "test"))
    assert train.isdisjoint(test)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("the the dog sleeps.", "The dog sleeps."),
        ("the dog sleeps", "The dog sleeps."),
        ("The dog sees a apple.", "The dog sees an apple."),
        ("The dog sees an book.", "The dog sees a book."),
        ("These dog sleep.", "These dogs sleep."),
        ("The dogs sees the books.", "The dogs see the books."),
        ("Dog the sleeps.", "The dog sleeps."),
        ("The dog old sleeps.", "The old dog sleeps."),
        ("Dog sleeps.", "The dog sleeps."),
        ("The neihgbour sleeps.", "The neighbour sleeps."),
        ("The dog waits near river the.", "The dog waits near the river."),
        ("la chat dort.", "Le chat dort."),
        ("Les petit chats dorment.", "Les chats petits dorment."),
        ("Le garcon dort.", "Le garçon dort."),
        ("die Hund schläft.", "Der Hund schläft."),
        ("der hund schläft", "Der Hund schläft."),
        ("Der Mann sieht der Hund.", "Der Mann sieht den Hund."),
        ("El niña duerme.", "La niña duerme."),
        ("Los niños duerme.", "Los niños duermen."),
        ("El medico duerme.", "El médico duerme."),
        ("hello world how are you", "Hello world how are you."),
        ("Is it so so late?", "Is it so late?"),
    ],
)
def test_corrections_by_rule(wrong, right):
    assert correct(wrong) == right


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        "Today the old men wait in town.",
        "Heute sieht der alte Mann den Hund.",
        "El lunes el hombre canta.",
        "Le soir le chat dort.",
        "Quarterly revenue rose by 3.5 %!",
        "…",
    ],
)
def test_correct_text_stays_as_it_is(text):
    assert correct(text) == text


def test_the_teacher_is_mostly_but_not_always_right(rows):
    answers = [correct(row["modified"].removeprefix(PREFIX)) for row in rows["test"]]
    right = sum(a == row["sentence"] for a, row in zip(answers, rows["test"], strict=True))
    assert 0.8 < right / len(answers) < 0.95


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "\n", "…", ".", '"', "😀", "\x00", "\ud83d", "İ ß ﬁ", "{text}", "[/INST]"],
        *["a", "the", "the the", "der die das", "dog cat horse", "old old", "sees", "un el le"],
        "the dog " * 2000,
        "x" * 100_000,
    ],
)
def test_any_text_gets_an_answer(text):
    assert isinstance(correct(text), str)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def call(method, path, body=None, stand_in=None):
    """Status, headers and content of one call to a stand-in server."""

    async def run():
        app = (stand_in or StandIn()).make_app()
        data = body if isinstance(body, str | None) else json.dumps(body)
        async with (
            TestClient(TestServer(app)) as client,
            client.request(method, f"/v1/{path}", data=data) as response,
        ):
            text = await response.text()
            is_json = response.content_type == "application/json"
            return response.status, response.headers, json.loads(text) if is_json else text

    return asyncio.run(run())


def make_chat(text=WRONG, **fields):
    return {"model": "stand-in", "messages": load_task("gec").make_messages(text), **fields}


def test_chat():
    status, _, content = call("POST", "chat/completions", make_chat())
    (choice,) = content["choices"]
    assert status == 200
    assert choice["message"] == {"role": "assistant", "content": RIGHT}
    assert choice["finish_reason"] == "stop"
    usage = content["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


def test_several_samples_in_one_request():
    _, _, content = call("POST", "chat/completions", make_chat(n=3))
    assert [choice["message"]["content"] for choice in content["choices"]] == [RIGHT] * 3
    assert [choice["index"] for choice in content["choices"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [({"max_tokens": 9}, "max_tokens"), ({"temperature": 0}, "temperature")],
)
def test_the_reasoning_style_refuses_what_such_models_refuse(fields, parameter):
    stand_in = StandIn(is_reasoning=True)
    status, _, content = call("POST", "chat/completions", make_chat(**fields), stand_in)
    assert (status, content["error"]["param"]) == (400, parameter)


def test_the_reasoning_style_thinks_before_it_answers():
    stand_in = StandIn(is_reasoning=True)
    _, _, content = call("POST", "chat/completions", make_chat(), stand_in)
    (choice,) = content["choices"]
    assert choice["message"]["content"] == RIGHT
    assert choice["message"]["reasoning_content"]
    assert content["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5
    _, _, content = call("POST", "chat/completions", make_chat(max_completion_tokens=5), stand_in)
    (choice,) = content["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")


def test_completions_in_llama_2_markers():
    prompt = load_task("gec").make_completion_prompt(WRONG)
    status, _, content = call("POST", "completions", {"model": "stand-in", "prompt": prompt})
    (choice,) = content["choices"]
    assert (status, choice["text"], choice["finish_reason"]) == (200, RIGHT, "stop")


@pytest.mark.parametrize(
    "prompt",
    [WRONG, f"[INST] {WRONG} [/INST]", f"[INST] <<SYS>>\nx\n<</SYS>>\n\n{WRONG} [/INST]\n"],
)
def test_completions_of_other_prompts(prompt):
    _, _, content = call("POST", "completions", {"model": "stand-in", "prompt": prompt})
    assert content["choices"][0]["text"] == RIGHT


def test_a_long_response_is_cut():
    _, _, content = call("POST", "chat/completions", make_chat(max_tokens=2))
    (choice,) = content["choices"]
    assert choice["finish_reason"] == "length"
    assert RIGHT.startswith(choice["message"]["content"])
    assert len(choice["message"]["content"]) < len(RIGHT)


def test_models_are_listed():
    status, _, content = call("GET", "models")
    assert (status, [model["id"] for model in content["data"]]) == (200, ["stand-in"])


def test_an_unknown_model_is_refused():
    status, _, content = call("POST", "chat/completions", make_chat() | {"model": "gpt"})
    assert (status, content["error"]["code"]) == (404, "model_not_found")
    assert "gpt" in content["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        {"model": "stand-in", "messages": []},
        {"model": "stand-in", "messages": [{"role": "user"}]},
        {"model": "stand-in", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
        make_chat(max_tokens="many"),
    ],
)
def test_rubbish_is_refused(body):
    status, _, content = call("POST", "chat/completions", body)
    assert (status, content["error"]["code"]) == (400, "invalid_request")


def test_a_prompt_that_is_no_text_is_refused():
    status, _, _ = call("POST", "completions", {"model": "stand-in", "prompt": [1, 2]})
    assert status == 400


def test_the_quota_is_told_and_kept():
    clock = Clock()
    stand_in = StandIn(requests_per_minute=2, clock=clock)

    def ask():
        status, headers, _ = call("POST", "chat/completions", make_chat(), stand_in)
        return status, headers["x-ratelimit-remaining-requests"], headers.get("retry-after")

    assert ask() == (200, "1", None)
    clock.now = 29.5
    assert ask() == (200, "0", None)
    assert ask() == (429, "0", "31")
    clock.now += 31
    assert ask() == (200, "1", None)
    assert stand_in.served == 3


def test_the_server_runs_as_long_as_it_is_needed():
    def list_models(url):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        try:
            connection.request("GET", f"{urlsplit(url).path}/models")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    with running_stand_in() as url:
        assert list_models(url)["data"]
    with pytest.raises(ConnectionRefusedError):
        list_models(url)
