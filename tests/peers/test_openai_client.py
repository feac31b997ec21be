"""The openai package's own client against the stand-in teacher, which is no easier than the API."""

import json

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


def test_it_answers_batches(client):
    def make_line(number, model="stand-in"):
        body = {"model": model, "messages": MESSAGES}
        url = "/v1/chat/completions"
        return {"custom_id": f"row {number}", "method": "POST", "url": url, "body": body}

    lines = [make_line(0), make_line(1), make_line(2, "other")]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("batch.jsonl", content), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"chunk": "one"},
    )
    batch = client.batches.retrieve(made.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 2)
    assert [b.metadata["chunk"] for b in client.batches.list(limit=1)] == ["one"]
    answers = client.files.content(batch.output_file_id).text.splitlines()
    results = {result["custom_id"]: result for result in map(json.loads, answers)}
    assert results["row 1"]["response"]["body"]["choices"][0]["message"]["content"]
    (failed,) = client.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(failed)["response"]["status_code"] == 404
    assert client.files.delete(file.id).deleted
