"""Structured answers: how a label is cut out of a response, cleaned and compared."""

import json

import pytest
from aiohttp import web

from common.errors import InputError
from common.labels.lanes.local import LocalLane
from common.metrics.json_values import count_fields, json_match
from common.run.run import open_run
from common.tasks.cleaning import clean, extract
from common.tasks.rules import LabelRules
from common.tasks.task import load_task
from support.fake_teacher import make_body, refuse, running_teacher
from support.labelling import label_texts


@pytest.mark.parametrize(
    ("response", "rule", "label"),
    [
        ("Answer: yes\nbecause", r"Answer: (\w+)", "yes"),
        ("no answer", r"Answer: (\w+)", None),
        ('{"label": "yes", "why": "x"}', "$.label", "yes"),
        ('```json\n{"label": "yes"}\n```', "$.label", "yes"),
        ('Here it is: {"label": "yes"} Good?', "$.label", "yes"),
        ('{"b": 1, "a": [true, null]}', "$", '{"a": [true, null], "b": 1}'),
        ('{"items": [{"full name": "é"}]}', '$.items[0]["full name"]', "é"),
        ('{"n": 1.5}', "$.n", "1.5"),
        ('{"n": null}', "$.n", None),
        ('{"items": []}', "$.items[0]", None),
        ('{"label": ', "$.label", None),
        ("[" * 100_000, "$", None),
    ],
)
def test_a_label_is_cut_out_of_a_response(response, rule, label):
    assert extract(response, rule) == label


@pytest.mark.parametrize("rule", ["(", "no group", "(two) (groups)", "$..x", "$.a b"])
def test_a_wrong_rule_is_told_of(rule, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(f"name = 'own'\nlabel_rules = {{extract = {json.dumps(rule)}}}", "utf-8")
    with pytest.raises(InputError, match=r"label_rules\.extract="):
        load_task(str(path))


@pytest.mark.parametrize(
    "response",
    [
        "positive",
        "Positive.",
        "**Positive**",
        "`positive`",
        '"positive"',
        "Label: positive",
        "**Label:** Positive",
        "The answer is: positive",
        "```\npositive\n```",
        "  positive  ",
        "# positive",
        "- positive",
        "(positive)",
        "\uff50\uff4f\uff53\uff49\uff54\uff49\uff56\uff45",  # full-width letters
    ],
)
def test_a_class_is_known_in_every_form_that_means_it(response):
    rules = LabelRules(allowed=["positive", "negative"])
    assert clean("a text", response, rules) == ("positive", True)


@pytest.mark.parametrize(
    "response",
    [
        "positive or negative",
        "not positive",
        "Label: other",
        "positively",
        "I think so: yes, positive",
        "Not: positive",
        "negative: positive",
        "I am not sure: positive",
        "!positive",
        "",
    ],
)
def test_what_may_mean_something_else_is_left_alone(response):
    rules = LabelRules(allowed=["positive", "negative"])
    assert clean("a text", response, rules)[0] == response


def test_classes_that_differ_in_form_alone_are_told_apart():
    numbers = LabelRules(allowed=["1", "0", "5", "-"])
    for response in ("-1", "<5", ".5", "Label: -1", ""):
        assert clean("x", response, numbers)[0] == response
    rules = LabelRules(allowed=["(a)", "a", "é", "C#", "C"])
    for label in ("(a)", "a", "C#", "C"):
        assert clean("x", label, rules)[0] == label
    assert clean("x", "e\u0301", rules)[0] == "é"
    assert clean("x", "*A*", rules)[0] == "*A*"  # (a) or a?


@pytest.mark.parametrize(
    ("prediction", "reference", "match", "fields"),
    [
        ('{"a": 1, "b": "x"}', '{"b": "x", "a": 1.0}', 1, [2, 2, 2]),
        ('{"a": 1}', '{"a": true}', 0, [0, 1, 1]),
        ('{"a": "“x”"}', '{"a": "\\"x\\""}', 1, [1, 1, 1]),
        ('{"a": [1, 2, 2]}', '{"a": [2, 1]}', 0, [2, 3, 2]),
        ('{"a": {"b": 1}, "c": 2}', '{"a": {"b": 1}, "c": 3}', 0, [1, 2, 2]),
        ("not json", '{"a": 1}', 0, [0, 1, 1]),
        ("the same", "the  same", 1, [1, 1, 1]),
    ],
)
def test_json_is_compared_as_values(prediction, reference, match, fields):
    assert json_match("", prediction, [reference]) == match
    assert count_fields("", prediction, [reference]) == fields


TASK = """
name = "people"
metrics = ["json_match", "json_field_f1"]
label_rules = {extract = "$"}
[teacher]
user = "Name and age, as JSON: {text}"
[teacher.response_format]
type = "json_schema"
[teacher.response_format.json_schema]
name = "person"
schema = {type = "object", properties = {name = {type = "string"}, age = {type = "integer"}}}
"""


@pytest.mark.parametrize("takes_format", [True, False])
def test_an_extraction_task_runs_from_its_file_alone(tmp_path, settings, takes_format):
    (tmp_path / "people.toml").write_text(TASK, "utf-8")

    def answer(text, call):
        body = teacher.bodies[call - 1]
        if "response_format" in body and not takes_format:
            return refuse(400, "response_format is not supported by this model")
        name, age = text.removeprefix("Name and age, as JSON: ").split(" is ")
        person = json.dumps({"name": name, "age": int(age)})
        fenced = person if takes_format else f"```json\n{person}\n```"
        return web.json_response(make_body(fenced))

    with running_teacher(answer) as teacher:
        own = settings(
            TASK=tmp_path / "people.toml", TEACHER__BASE_URL=teacher.url, TEACHER__MODEL="big"
        )
        texts = ["Ada is 36", "Alan is 41"]
        rows, _ = label_texts(own, texts, LocalLane, open_run(own).task)
        assert sorted(row.label for row in rows.values()) == [
            '{"age": 36, "name": "Ada"}',
            '{"age": 41, "name": "Alan"}',
        ]
        assert len(teacher.bodies) == 2 + (not takes_format)
        sent = teacher.bodies[0]["response_format"]["json_schema"]
        assert sent["schema"]["properties"]["age"] == {"type": "integer"}
