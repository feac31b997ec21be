import json

import pytest

from common.data.testset import TestRow
from common.errors import DistillError
from common.evaluation.runner import SystemRunner
from common.labels.label_row import make_label
from common.records import Example, hash_text, make_label_table
from common.run.run import Run
from common.run.storage import RunStorage
from common.sections import TeacherSettings
from common.tasks.task import Task, load_task
from common.teacher.replies import Reply
from common.teacher.requests import make_key, make_request
from support.fake_teacher import refuse, running_teacher

TEXT = "She go to school every days."
LABEL = "She goes to school every day."
EXAMPLE = Example(hash_text(TEXT), TEXT)
GEC = load_task("gec")


def make_body(text, finish_reason="stop", endpoint="chat"):
    content = {"message": {"content": text}} if endpoint == "chat" else {"text": text}
    return json.dumps(
        {
            "choices": [{"index": 0, "finish_reason": finish_reason, **content}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 7},
        }
    )


def label(body, status=200):
    return make_label(EXAMPLE, [Reply("key", status, body, attempts=2, seconds=1.5)], GEC)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_usable_response_becomes_the_label(endpoint):
    row = label(make_body(f' "{LABEL}"\n', endpoint=endpoint))
    assert (row.id, row.text, row.status, row.label) == (EXAMPLE.id, TEXT, "ok", LABEL)
    assert (row.error, row.message, row.finish_reason) == (None, None, "stop")
    assert row.response == f' "{LABEL}"\n'
    assert (row.prompt_tokens, row.completion_tokens) == (30, 7)
    assert (row.attempts, row.seconds) == (2, 1.5)
    assert (row.agreement, row.samples) == (1.0, 1)


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
        make_body([{"type": "text"}]),
        make_body(3),
        make_body(LABEL, finish_reason=["stop"]),
        "[" * 100_000,
    ],
)
def test_a_response_of_another_shape_is_a_failure(body):
    row = label(body)
    assert (row.status, row.label, row.error) == ("failed", None, "bad_response")
    assert row.message


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 30, "completion_tokens": 7}, (30, 0, 7)),
        ({"prompt_tokens": 30, "prompt_tokens_details": {"cached_tokens": 20}}, (30, 20, 0)),
        ({"prompt_tokens": 30, "prompt_tokens_details": None}, (30, 0, 0)),
        ({"prompt_tokens": 30, "prompt_tokens_details": {"cached_tokens": None}}, (30, 0, 0)),
        ({"prompt_tokens": 1e999, "completion_tokens": -1}, (0, 0, 0)),
        ({"prompt_tokens": 10**30, "completion_tokens": "7"}, (0, 0, 0)),
        ("none", (0, 0, 0)),
        (None, (0, 0, 0)),
    ],
)
def test_a_response_is_usable_whatever_its_usage_says(usage, counts):
    row = label(json.dumps({"choices": [{"text": LABEL}], "usage": usage}))
    assert (row.status, row.label) == ("ok", LABEL)
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens) == counts


def test_a_blank_text_fails_without_a_reply():
    row = make_label(Example(hash_text(" "), " "), [], GEC)
    assert (row.status, row.label, row.error) == ("failed", None, "empty_text")
    assert (row.agreement, row.samples) == (None, 0)


REFUSED = (400, json.dumps({"error": {"message": "no"}}))
TIMED_OUT = (0, "timeout: no answer")


def make_replies(*samples):
    """Replies from texts, or from pairs of HTTP status and body."""
    pairs = [(200, make_body(s)) if isinstance(s, str) else s for s in samples]
    return [
        Reply(f"key {i}", *pair, attempts=i + 1, seconds=float(i)) for i, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("samples", "label", "agreement"),
    [
        (["a", "b", "b"], "b", 2 / 3),
        (["a", "b", "b", "a"], "a", 1 / 2),
        (["a", "b", "c"], "a", 1 / 3),
        (["b", "a", "c", "a  c"], "b", 1 / 4),
        (["b", "a  c", "a c", "a c"], "a c", 3 / 4),
        (["b", "a  c", "a c"], "a  c", 2 / 3),
        (["“a”", '"a"', "b"], "“a”", 2 / 3),
        (["x", "e\u0301", "\u00e9"], "e\u0301", 2 / 3),
        (["b", "A", "a", "a"], "a", 1 / 2),
        (["", "", "a"], "a", 1 / 3),
        ([REFUSED, TIMED_OUT, "a", "b"], "a", 1 / 4),
    ],
)
def test_the_majority_of_the_samples_is_the_label(samples, label, agreement):
    row = make_label(EXAMPLE, make_replies(*samples), Task(name="any"))
    assert (row.status, row.label, row.error) == ("ok", label, None)
    assert (row.agreement, row.samples) == (agreement, len(samples))


def test_a_row_has_all_labels_of_its_samples_with_their_shares():
    row = make_label(EXAMPLE, make_replies("a", REFUSED, "b", "a", " "), Task(name="any"))
    assert row.labels == ["a", "b"]
    assert row.shares == pytest.approx([2 / 3, 1 / 3])  # of those that passed
    row = make_label(EXAMPLE, make_replies("I’m in", "I'm in", "I'm in", "no"), Task(name="any"))
    assert (row.labels, row.shares) == (["I'm in", "no"], [0.75, 0.25])  # one vote, two spellings
    assert make_label(EXAMPLE, make_replies("a"), Task(name="any")).labels is None
    assert make_label(EXAMPLE, make_replies("", ""), Task(name="any")).labels is None


@pytest.mark.parametrize(
    ("samples", "status", "error"),
    [
        (["", "a\nb", "a\nb"], "filtered", "several_lines"),
        (["", "a\nb"], "filtered", "empty"),
        ([TIMED_OUT, TIMED_OUT, ""], "filtered", "empty"),
        ([REFUSED, TIMED_OUT, TIMED_OUT], "failed", "timeout"),
        ([REFUSED, TIMED_OUT], "failed", "bad_request"),
    ],
)
def test_samples_that_all_miss_name_the_commonest_reason(samples, status, error):
    task = Task(name="any", label_rules={"single_line": True})
    row = make_label(EXAMPLE, make_replies(*samples), task)
    assert (row.status, row.label, row.error) == (status, None, error)
    assert (row.agreement, row.samples) == (None, len(samples))


def test_a_row_has_the_chosen_samples_response_and_the_cost_of_all():
    row = make_label(EXAMPLE, make_replies("other", REFUSED, " a", "a\n"), Task(name="any"))
    assert (row.label, row.response, row.message) == ("a", " a", None)
    assert (row.prompt_tokens, row.completion_tokens) == (90, 21)
    assert (row.attempts, row.seconds) == (1 + 2 + 3 + 4, 3.0)


CHAT_LOGPROBS = {
    "content": [
        {
            "token": "She",
            "logprob": -0.25,
            "bytes": [83, 104, 101],
            "top_logprobs": [{"token": "She", "logprob": -0.25}, {"token": "He", "logprob": -2}],
        },
        {"token": " \ud83d", "logprob": -0.5, "top_logprobs": []},
    ]
}
COMPLETIONS_LOGPROBS = {
    "tokens": ["She", " \ud83d"],
    "token_logprobs": [-0.25, -0.5],
    "top_logprobs": [{"She": -0.25, "He": -2}, None],
    "text_offset": [0, 3],
}


@pytest.mark.parametrize("logprobs", [CHAT_LOGPROBS, COMPLETIONS_LOGPROBS])
def test_log_probabilities_are_kept_in_columns(logprobs):
    choice = {"text": LABEL, "logprobs": logprobs}
    table = make_label_table([label(json.dumps({"choices": [choice]}))])
    row = table.to_pylist()[0]
    assert (row["status"], row["label"]) == ("ok", LABEL)
    assert (row["tokens"], row["token_logprobs"]) == (["She", " ?"], [-0.25, -0.5])
    assert row["top_tokens"] == [["She", "He"], []]
    assert row["top_logprobs"] == [[-0.25, -2.0], []]


@pytest.mark.parametrize(
    ("logprobs", "values"),
    [
        ({"tokens": ["She"], "token_logprobs": [None], "top_logprobs": None}, [None]),
        ({"tokens": ["She"], "token_logprobs": [-1]}, [-1.0]),
        ({"content": [{"token": "She", "logprob": -1}]}, [-1.0]),
        ({"content": []}, []),
    ],
)
def test_log_probabilities_without_alternatives_are_kept(logprobs, values):
    row = label(json.dumps({"choices": [{"text": LABEL, "logprobs": logprobs}]}))
    assert row.token_logprobs == values
    assert row.top_tokens == row.top_logprobs == [[]] * len(values)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        [],
        "none",
        3,
        True,
        {"content": None},
        {"content": [None]},
        {"content": [{"token": "She"}]},
        {"content": [{"token": 3, "logprob": -1}]},
        {"content": [{"token": "She", "logprob": "low"}]},
        {"content": [{"token": "She", "logprob": -(10**400)}]},
        {"content": [{"token": "She", "logprob": -1, "top_logprobs": [{"token": "She"}]}]},
        {"content": [{"token": "She", "logprob": -1, "top_logprobs": 3}]},
        {"tokens": ["She"]},
        {"tokens": ["She"], "token_logprobs": [-1, -2]},
        {"tokens": ["She"], "token_logprobs": [-1], "top_logprobs": [{"She": -1}, {"goes": -2}]},
        {"tokens": ["She"], "token_logprobs": [-1], "top_logprobs": [[-1]]},
    ],
)
def test_log_probabilities_of_another_shape_are_left_out(logprobs):
    row = label(json.dumps({"choices": [{"text": LABEL, "logprobs": logprobs}]}))
    assert (row.status, row.label) == ("ok", LABEL)
    assert (row.tokens, row.token_logprobs, row.top_tokens, row.top_logprobs) == (None,) * 4
    assert make_label_table([row]).num_rows == 1


@pytest.mark.parametrize(
    ("endpoint", "logprobs", "fields"),
    [
        ("chat", 0, {}),
        ("chat", 3, {"logprobs": True, "top_logprobs": 3}),
        ("completions", 0, {}),
        ("completions", 3, {"logprobs": 3}),
    ],
)
def test_log_probabilities_are_requested_only_when_asked_for(endpoint, logprobs, fields):
    settings = TeacherSettings(model="big", endpoint=endpoint, logprobs=logprobs)
    body = make_request(settings, GEC, TEXT)
    assert {name: body[name] for name in body if "logprobs" in name} == fields


@pytest.mark.parametrize(
    ("endpoint", "key"),
    [
        ("chat", "7bba5d82b4778d3f879c83aa6fed5db150664c80ce9c5c893123a09eb6f3be72"),
        ("completions", "c711db6c504847ada272e2c8e05a9b3fe7d1f7cde3098a54d68d0dfe25b02f27"),
    ],
)
def test_keys_of_paid_responses_stay_valid(endpoint, key):
    """A change here makes every run ask, and pay, again for what its journal holds."""
    settings = TeacherSettings(base_url="http://teacher/v1", model="big", endpoint=endpoint)
    body = make_request(settings, Task(name="any"), TEXT)
    assert make_key(settings, body) == key


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

    def ask(own):
        return SystemRunner(Run(own, task, RunStorage(own)), None, None).ask_teacher(rows)

    with running_teacher(
        lambda text, call: refuse(503, "down") if text == "two" else text
    ) as server:
        own = settings(
            TEACHER__BASE_URL=server.url, TEACHER__MODEL="big", TEACHER__MAX_ATTEMPTS="1"
        )
        with pytest.raises(DistillError, match="1 of 2 texts have no answer"):
            ask(own)
        some = settings(LABEL__MAX_FAILURE_RATE=0.5)
        answers = ask(some)
        assert [answer.error for answer in answers] == [None, "server_error"]
        server.answer = lambda text, call: text
        answers = ask(own)
        assert [answer.text for answer in answers] == ["one", "two"]
        assert len(server.bodies) == 4
