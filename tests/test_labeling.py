import json

import pytest

from common.data import TestRow
from common.errors import DistillError
from common.labeling import make_label
from common.records import Example, hash_text, make_label_table
from common.replies import Reply
from common.rules import apply_rules
from common.storage import RunStorage
from common.systems import ask_teacher
from common.tasks import LabelRules, Task, load_task
from fake_teacher import refuse, running_teacher

TEXT = "She go to school every days."
LABEL = "She goes to school every day."
EXAMPLE = Example(hash_text(TEXT), TEXT)
GEC = load_task("gec")


@pytest.mark.parametrize(
    ("text", "response", "rules", "label"),
    [
        ("a", " b \n", {}, "b"),
        ("a", "two\nlines", {}, "two\nlines"),
        ("a", '"b"', {}, '"b"'),
        ("a", '"b"', {"unquote": True}, "b"),
        ("a", "«\u00a0b\u00a0»", {"unquote": True}, "b"),
        ("a", "„b“", {"unquote": True}, "b"),
        ("a", '"b', {"unquote": True}, '"b'),
        ("a", '"', {"unquote": True}, '"'),
        ('"a" he said', '"b"', {"unquote": True}, '"b"'),
        ("Yes, he said, no", '"Yes," he said, "no"', {"unquote": True}, '"Yes," he said, "no"'),
        ("a", "POSITIVE", {"lower_case": True}, "positive"),
        ("a", "Positive.", {"lower_case": True, "allowed": ["positive"]}, "positive"),
        ("a", "e.g.", {"allowed": ["e.g."]}, "e.g."),
        ("two\nlines", "2\nlines", {"single_line": True}, "2\nlines"),
        ("a", "fine", {"reject_patterns": ["^Sure"]}, "fine"),
        ("Sure: yes", "Sure: yes!", {"reject_patterns": ["^Sure"]}, "Sure: yes!"),
        ("x" * 20, "y" * 10, {"min_length_ratio": 0.5}, "y" * 10),
        ("x" * 20, "y" * 40, {"max_length_ratio": 2}, "y" * 40),
        ("short", "y" * 40, {"max_length_ratio": 2}, "y" * 40),
    ],
)
def test_a_response_that_passes_the_rules(text, response, rules, label):
    assert apply_rules(text, response, LabelRules(**rules)) == (label, None)


@pytest.mark.parametrize(
    ("text", "response", "rules", "reason"),
    [
        ("a", "", {}, "empty"),
        ("a", " \n", {}, "empty"),
        ("a", '""', {"unquote": True}, "empty"),
        ("a", "neutral", {"allowed": ["positive", "negative"]}, "not_allowed"),
        ("a", "Positive", {"allowed": ["positive"]}, "not_allowed"),
        ("a", "two\nlines", {"single_line": True}, "several_lines"),
        ("a", "Sure: b", {"reject_patterns": ["^No", "^Sure"]}, "pattern"),
        ("x" * 20, "y" * 9, {"min_length_ratio": 0.5}, "length_ratio"),
        ("x" * 20, "y" * 41, {"max_length_ratio": 2}, "length_ratio"),
    ],
)
def test_a_response_that_a_rule_rejects(text, response, rules, reason):
    assert apply_rules(text, response, LabelRules(**rules))[1] == reason


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (f"Sure, here is the sentence: {LABEL}", "pattern"),
        (f"Here's the corrected sentence: {LABEL}", "pattern"),
        ("As an AI, I would rather not.", "pattern"),
        ("I cannot correct this.", "pattern"),
        (f"{LABEL}\n\nI corrected the verb.", "several_lines"),
        ("She", "length_ratio"),
    ],
)
def test_chatter_is_no_correction(response, reason):
    assert apply_rules(TEXT, response, GEC.label_rules)[1] == reason


@pytest.mark.parametrize(
    ("text", "response"),
    [
        (TEXT, LABEL),
        ("Hier is the book", "Here is the book."),
        ("he said i cannot come", "He said I cannot come."),
        ("Of course he come.", "Of course he comes."),
    ],
)
def test_plain_corrections_pass_the_rules(text, response):
    assert apply_rules(text, response, GEC.label_rules) == (response, None)


def make_body(text, finish_reason="stop", endpoint="chat"):
    content = {"message": {"content": text}} if endpoint == "chat" else {"text": text}
    return json.dumps(
        {
            "choices": [{"index": 0, "finish_reason": finish_reason, **content}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 7},
        }
    )


def label(body, status=200):
    return make_label(EXAMPLE, Reply("key", status, body, attempts=2, seconds=1.5), GEC)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_usable_response_becomes_the_label(endpoint):
    row = label(make_body(f' "{LABEL}"\n', endpoint=endpoint))
    assert (row.id, row.text, row.status, row.label) == (EXAMPLE.id, TEXT, "ok", LABEL)
    assert (row.error, row.message, row.finish_reason) == (None, None, "stop")
    assert row.response == f' "{LABEL}"\n'
    assert (row.prompt_tokens, row.completion_tokens) == (30, 7)
    assert (row.attempts, row.seconds) == (2, 1.5)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("finish_reason", ["length", "content_filter"])
def test_an_unfinished_response_is_no_label_and_is_kept(endpoint, finish_reason):
    row = label(make_body("She goes to", finish_reason, endpoint))
    assert (row.status, row.label, row.error) == ("failed", None, finish_reason)
    assert (row.response, row.completion_tokens) == ("She goes to", 7)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_empty_response_is_filtered(endpoint, text):
    row = label(make_body(text, endpoint=endpoint))
    assert (row.status, row.label, row.error) == ("filtered", None, "empty")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"code": "context_length_exceeded", "message": "too long"}, "context_length"),
        (400, {"code": "content_policy_violation", "message": "no"}, "content_policy"),
        (400, {"code": "content_filter", "message": "no"}, "content_policy"),
        (422, {"message": "what?"}, "bad_request"),
        (429, {"message": "slow down"}, "rate_limit"),
        (500, {"message": "oops"}, "server_error"),
    ],
)
def test_an_error_response_is_a_typed_failure(status, body, error):
    row = label(json.dumps({"error": body}), status)
    assert (row.status, row.label, row.error) == ("failed", None, error)
    assert row.message == body["message"]
    assert row.response is None


@pytest.mark.parametrize("status", [400, 404, 502])
def test_an_error_page_that_is_not_json_is_a_failure(status):
    row = label("<html>\n<h1>Bad Gateway</h1>", status)
    assert (row.status, row.label, row.response) == ("failed", None, None)
    assert "Bad Gateway" in row.message


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "{}",
        '{"choices": []}',
        '{"choices": [null]}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"finish_reason": "stop"}]}',
        make_body([{"type": "text", "text": LABEL}]),
        make_body(3),
        make_body(LABEL, finish_reason=["stop"]),
        json.dumps({"choices": [{"text": LABEL}], "usage": "none"}),
    ],
)
def test_a_response_of_another_shape_is_a_failure(body):
    row = label(body)
    assert (row.status, row.label, row.error) == ("failed", None, "bad_response")
    assert row.message


def test_a_response_without_usage_is_usable():
    row = label(json.dumps({"choices": [{"text": LABEL}]}))
    assert (row.label, row.prompt_tokens, row.completion_tokens) == (LABEL, 0, 0)


def test_a_blank_text_fails_without_a_reply():
    row = make_label(Example(hash_text(" "), " "), None, GEC)
    assert (row.status, row.label, row.error) == ("failed", None, "empty_text")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (make_body("She goes \ud83d", "length"), 200),
        (make_body(f"{LABEL} \ud83d"), 200),
        (json.dumps({"error": {"message": "cut \ud83d"}}), 400),
    ],
)
def test_half_an_emoji_in_a_response_can_be_stored(body, status):
    assert make_label_table([label(body, status)]).num_rows == 1


def test_evaluation_does_not_take_an_outage_for_the_teachers_answer(settings):
    task = Task(name="echo")
    rows = [TestRow(hash_text(text), text, ["x"]) for text in ("one", "two")]
    with running_teacher(
        lambda text, call: refuse(503, "down") if text == "two" else text
    ) as server:
        own = settings(
            TEACHER__BASE_URL=server.url, TEACHER__MODEL="big", TEACHER__MAX_ATTEMPTS="1"
        )
        with pytest.raises(DistillError, match="1 of 2 test rows have no answer"):
            ask_teacher(own, task, RunStorage(own), rows)
        server.answer = lambda text, call: text
        answers = ask_teacher(own, task, RunStorage(own), rows)
        assert [answer.text for answer in answers] == ["one", "two"]
        assert len(server.bodies) == 3
