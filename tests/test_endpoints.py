"""Served models as systems of the evaluation."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp import web

from common.data.examples import Examples
from common.data.testset import TestRow
from common.errors import CostCapError, DistillError, InputError, SettingsError
from common.evaluation.online import ask_endpoint
from common.labels.endpoints import measure_cost, measure_costs
from common.labels.lanes.local import LocalLane
from common.labels.resume import read_known
from common.records import hash_text
from common.run.run import Run, open_run
from common.sections import Endpoint
from common.student.student import open_student
from common.tasks.task import FewShot, Task, load_task
from jobs import evaluate, report
from support.fake_teacher import make_body, refuse, running_teacher
from support.labelling import label_texts
from support.trained_run import make_trained_run

KEY = "sk-not-to-be-seen-1234"


@pytest.fixture
def trained(settings, tmp_path):
    """Settings and storage of a trained run."""
    return make_trained_run(settings, tmp_path, TRAIN__MERGE="false", TEACHER__MAX_ATTEMPTS=1)


def make_rows(*texts):
    return [TestRow(hash_text(text), text, [text.upper()], {}) for text in texts]


def name_endpoints(**endpoints):
    return {"EVALUATE__ENDPOINTS": json.dumps(endpoints)}


def read_metrics(storage):
    return storage.read_json("metrics.json")


def test_a_served_student_has_the_figures_of_the_student_itself(
    trained, settings, monkeypatch, capsys
):
    own, storage = trained
    evaluate.main(own)
    adapter = Path(storage.path("adapter"))
    served = open_student(own, Task(name="served"), adapter)  # a server knows no task
    seen = []

    def answer(prompt, call):
        return served.answer([prompt])[0].text

    monkeypatch.setenv("SERVED_KEY", KEY)
    with running_teacher(answer) as server:
        server.watch = lambda request: seen.append(request.headers["Authorization"])
        named = {"base_url": server.url, "api_key_variable": "SERVED_KEY"}
        evaluate.main(settings(**name_endpoints(served=named)))
        asked = len(server.bodies)
        assert asked == 20
        evaluate.main(settings(**name_endpoints(served=named)))
        storage.remove("predictions/manifest.json", "predictions/served.parquet")
        evaluate.main(settings())  # as after a kill
        assert len(server.bodies) == asked
        last_month = settings(**name_endpoints(served=named, last_month=server.url))
        evaluate.main(last_month)
        assert len(server.bodies) == 2 * asked
    assert set(seen) == {f"Bearer {KEY}", "Bearer none"}
    body = server.bodies[0]
    assert body.keys() == {"model", "max_tokens", "temperature", "messages"}
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("big", 24, 0)
    prompts = {load_task("gec").make_student_prompt(f"the {i} dog sleep") for i in range(40, 60)}
    assert {b["messages"][0]["content"] for b in server.bodies} == prompts
    assert {len(b["messages"]) for b in server.bodies} == {1}

    metrics = read_metrics(storage)
    tables = {
        s: pq.read_table(storage.path(f"predictions/{s}.parquet")) for s in metrics["systems"]
    }
    for system in ("served", "last_month"):
        assert tables[system]["prediction"] == tables["distilled"]["prediction"]
        for name in metrics["metrics"]:
            assert metrics["systems"][system][name] == metrics["systems"]["distilled"][name]
        assert metrics["agreement"][system] == metrics["agreement"]["distilled"]
    pairs = {(c["system"], c["than"]) for c in metrics["comparisons"]}
    assert {("distilled", "served"), ("served", "teacher"), ("last_month", "teacher")} <= pairs
    results = sorted(n for n in storage.list_files("") if n.startswith("results_"))[-1]
    assert "gec_served" in storage.read_json(results)["results"]
    report.main(last_month)
    assert "Distilled student – endpoint served" in storage.read_bytes("report.md").decode()
    evaluate.main(settings(**name_endpoints()))
    assert "served" not in read_metrics(storage)["systems"]
    for path in Path(storage.path()).rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_an_endpoint_that_is_down_keeps_what_the_others_have_answered(trained, settings):
    _, storage = trained
    fails = True

    def answer(prompt, call):
        return refuse(500, "broken") if fails and "5" in prompt else prompt

    with running_teacher(answer) as server:
        named = settings(**name_endpoints(served=server.url), LABEL__MAX_FAILURE_RATE=0.1)
        with pytest.raises(DistillError, match=r"'served': .* of 20 texts have no answer"):
            evaluate.main(named)
        first = len(server.answered)
        assert 0 < first < 20
        kept = Path(storage.path("predictions/teacher.parquet")).stat().st_mtime_ns
        fails = False
        evaluate.main(named)
        assert len(server.answered) == 20
        assert not server.paid_again
        assert Path(storage.path("predictions/teacher.parquet")).stat().st_mtime_ns == kept
    gone = settings(
        **name_endpoints(served=server.url, gone={"base_url": server.url, "model": "x"}),
        TEACHER__STARTUP_SECONDS=0,
    )
    with pytest.raises(DistillError, match=r"ENDPOINTS, 'gone': base_url='http.*nothing answers"):
        evaluate.main(gone)


@pytest.fixture
def run(settings, tmp_path):
    """A run of a task without data; its own teacher costs nothing that is known."""
    task = Task(
        name="echo",
        teacher={"system": "Be brief.", "response_format": {"type": "json_object"}},
        few_shot=[FewShot(text="x", label="y")],
        student={"prompt": "Say:\n{text}"},
        label_rules={"max_length_ratio": 2, "unquote": True, "allowed": []},
    )
    own = settings(TEACHER__MODEL="big", TEACHER__EXTRA_BODY='{"top_p": 0.5}')
    return Run(own, task, open_run(own).storage)


def ask(run, url, *texts, name="served", **fields):
    endpoint = Endpoint(base_url=url, **fields)
    return ask_endpoint(run, name, endpoint, make_rows(*texts))


def test_an_endpoint_that_starts_is_waited_for(run):
    with running_teacher(lambda t, n: refuse(503, "loading") if n < 3 else t) as server:
        assert ask(run, server.url, "a text")[0].text == "Say:\na text"


@pytest.mark.parametrize(
    ("prompt", "contents"),
    [
        ("student", ["Say:\na text"]),
        ("text", ["a text"]),
        ("teacher", ["Be brief.", "x", "y", "a text"]),
    ],
)
def test_prompts_of_an_endpoint(run, prompt, contents):
    with running_teacher(lambda text, call: text) as server:
        ask(run, server.url, "a text", prompt=prompt, extra_body={"seed": 7})
        (body,) = server.bodies
    assert [message["content"] for message in body["messages"]] == contents
    assert body["seed"] == 7
    assert ("response_format" in body) is (prompt == "teacher")
    assert not {"top_p", "logprobs"} & body.keys()


def test_answers_are_those_of_their_own_endpoint(run, settings):
    """Though URL, model and request are the teacher's."""

    def answer(text, call):
        return f"{call}"

    with running_teacher(answer) as server:
        plain = Task(name="echo", student={"prompt": "{text}"})
        own = settings(TEACHER__BASE_URL=server.url, TEACHER__EXTRA_BODY="{}")
        rows, _ = label_texts(own, ["a text"], LocalLane, plain)
        run = Run(own, plain, run.storage)
        answers = [ask(run, server.url, "a text", name=n)[0].text for n in ("a", "b", "a")]
        assert [rows["a text"].label, *answers] == ["1", "2", "3", "2"]
        server.models = ["another"]  # is served at the same URL now
        with pytest.raises(InputError, match=r"answers of 'big' at http.*not of 'another'"):
            ask(run, server.url, "a text", name="a")


def test_no_rule_filters_an_endpoints_answers(run):
    """And what is cut off counts as it is: as for a student in this process."""
    long, cut = "long " * 50, make_body("It is c", finish_reason="length")

    def answer(text, call):
        if "blocked" in text:
            return refuse(400, "content_filter: blocked")
        return web.json_response(cut) if "cut" in text else long

    with running_teacher(answer) as server:
        found = ask(run, server.url, "a text of more than twenty", "cut", "blocked")
    assert [(r.text, r.error) for r in found] == [
        (long.strip(), None),
        ("It is c", None),
        ("", "content_policy"),
    ]


def test_the_model_is_the_only_one_that_is_listed(run):
    with running_teacher(lambda text, call: text) as server:
        server.models = ["one", "two"]
        with pytest.raises(SettingsError, match=r"lists 2 models \(one, two\); name the model"):
            ask(run, server.url, "a text")
        assert ask(run, server.url, "a text", model="two")[0].text
        assert server.bodies[0]["model"] == "two"


def test_the_cost_of_endpoints_is_apart_and_under_the_same_cap(run, settings, tmp_path):
    prices = tmp_path / "prices.toml"
    entry = '[[price]]\nmodel = "{}"\ninput = {}\noutput = 0\n'
    prices.write_text(entry.format("big", 1e5) + entry.format("small", 2e5))
    with running_teacher(lambda text, call: text) as server:
        own = settings(TEACHER__BASE_URL=server.url, TEACHER__PRICES=prices)
        run = Run(own, run.task, run.storage)
        label_texts(own, ["one"], LocalLane, run.task)  # $1: 10 tokens
        ask(run, server.url, "one", name="a", model="small")
        ask(run, server.url, "one", "two", name="b", model="big")
        assert measure_cost(run, "a") == pytest.approx(2)
        assert measure_costs(run) == pytest.approx(4)
        labels = read_known(run, Examples.of([]), lambda outcome: None)
        assert labels.cost_usd == pytest.approx(1)
        calls = len(server.bodies)
        capped = settings(LABEL__MAX_COST_USD=5.5)
        with pytest.raises(CostCapError, match=r"\$5\.0000 are spent"):
            ask(Run(capped, run.task, run.storage), server.url, "two", name="a", model="small")
        with pytest.raises(CostCapError, match=r"\$5\.0000 are spent"):
            label_texts(capped, ["two"], LocalLane, run.task)
        assert len(server.bodies) == calls


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{", "should be a JSON object"),
        ({"Served": "http://a/v1"}, "pattern"),
        ({"a": "localhost:8000"}, "'a' 'base_url'='localhost:8000': should be an http"),
        ({"a": {"model": "m"}}, "ENDPOINTS 'a' 'base_url': field required"),
        ({"a": {"base_url": "http://a/v1", "prompt": "mine"}}, "'prompt'='mine'"),
        ({"a": {"base_url": "http://a/v1", "api_key": KEY}}, "'a' 'api_key': extra"),
        ({"a": {"base_url": "http://a/v1", "secret": KEY}}, "'a' 'secret': extra"),
        ({"a": {"base_url": "http://a/v1", "api_key_variable": KEY}}, "'api_key_variable': "),
        ({"a": {"base_url": f"http://u:{KEY}@a/v1"}}, "should hold no user"),
        ({"a": {"base_url": "http://a/v1", "extra_body": {"model": 1}}}, "'model' is set by"),
        (f'{{"a": {{"api_key": "{KEY}"', "should be a JSON object"),
    ],
)
def test_wrong_endpoints_are_told_without_their_keys(settings, given, reason):
    text = given if isinstance(given, str) else json.dumps(given)
    with pytest.raises(SettingsError) as caught:
        settings(EVALUATE__ENDPOINTS=text)
    assert reason in str(caught.value)
    assert KEY not in str(caught.value)


def test_what_an_endpoint_lacks_is_found_first(settings):
    own = settings(STUDENT__MODEL="builtin", **name_endpoints(base="http://a/v1"))
    with pytest.raises(SettingsError, match="'base' is a system already"):
        evaluate.main(own)
    lacking = {"base_url": "http://a/v1", "api_key_variable": "NO_SUCH_KEY"}
    with pytest.raises(SettingsError, match="'served': the variable NO_SUCH_KEY is not set"):
        evaluate.main(settings(**name_endpoints(served=lacking)))


def test_a_key_that_is_refused_names_the_endpoint(run, monkeypatch):
    monkeypatch.setenv("SERVED_KEY", KEY)

    def refuse_all(text, call):
        return refuse(401, f"no such key: {KEY}")

    with running_teacher(refuse_all) as server, pytest.raises(DistillError) as caught:
        ask(run, server.url, "a text", api_key_variable="SERVED_KEY")
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert message.startswith("DISTILL_EVALUATE__ENDPOINTS, 'served': the server at http")
    assert "check api_key_variable" in message
    assert KEY not in message
