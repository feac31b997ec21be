"""The openai package's own client against the stand-in teacher, which is no easier than the API."""

import openai
import pytest

from peers.conftest import running_stand_in


@pytest.fixture(scope="module")
def client():
    with running_stand_in() as url, openai.OpenAI(base_url=url, api_key="none") as client:
        yield client


@pytest.fixture(scope="module")
def reasoning_client():
    with running_stand_in("--reasoning") as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0)


MESSAGES = [{"role": "user", "content": "She go to school."}]


def test_it_lists_its_model(client):
    assert [model.id for model in client.models.list()] == ["stand-in"]


def test_it_chats(client):
    answer = client.chat.completions.create(model="stand-in", messages=MESSAGES, n=2, temperature=0)
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_it_completes(client):
    answer = client.completions.create(model="stand-in", prompt="[INST] She go. [/INST]")
    assert answer.choices[0].text


def test_its_refusals_are_the_api_s(client, reasoning_client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as raised:
        reasoning_client.chat.completions.create(model="stand-in", messages=MESSAGES, max_tokens=5)
    assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "max_tokens")
