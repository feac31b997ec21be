"""Whatever comes in: what is good is taken, all else is refused in one line that names the place.

Each property is tried with few values, the same each time; `--hypothesis-profile=more` takes more.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.environment import list_settings, load_settings
from common.errors import DistillError, InputError, SettingsError, shorten, show
from common.labels.label_row import make_label
from common.prices.prices import Price, find_price
from common.records import Example, hash_text, make_label_table
from common.sections import TeacherSettings
from common.tasks.task import Task, load_task
from common.teacher.api_errors import read_error
from common.teacher.costs import find_cost
from common.teacher.journal import decode_line, encode_line
from common.teacher.rate_limits import parse_reset, parse_retry_after
from common.teacher.replies import Reply, read_answer, split_reply
from common.teacher.statuses import match_rule
from support.damage import JUNK, list_paths, replace_at

KEY, HIDDEN = "sk-of-the-teacher", "hunter2"
LONGEST = 700
"""The most characters of a message with one value and one fix."""


def refuse_or_take(function: Callable[[], object], kind: type[DistillError], *named: str) -> bool:
    """Whether it takes what it is given; if not, checks the error's message."""
    try:
        function()
    except kind as error:
        message = str(error)
        assert all(name in message for name in named), message
        assert message.isprintable(), message
        assert len(message) < LONGEST, message
        assert KEY not in message
        assert HIDDEN not in message
        return False
    return True


# Settings

SETTINGS = [name for name, _, _ in list_settings()]
ODD = [
    *("-1", "1.5", "nan", "inf", "-inf", "1e308", "1e400", "1" + "0" * 30, "1" * 5000, "1e-320"),
    *("x", "true", "null", "[]", "[1]", '{"a": 1}', '{"a": null}', '{"a"', "[" * 100_000, '"x"'),
    *("a\nb", "a\x01b", "a\x7fb", "\x1b[31mred", "é", "😀", "\u202e", "\u2028", "x" * 100_000),
    *(",", "a,a", "a,,b", "٣", "1_000", "1,000", "+5", "-0", "0x10", "x y:1", "localhost:99999"),
    *("http://", "http://x:99999/v1", "http://x:y/v1", "http://[::1/v1", "http://x/\x01"),
    *(f"https://x/v1?key={HIDDEN}", f"https://u:{HIDDEN}@x/v1", f'{{"Authorization": "{HIDDEN}"}}'),
    *("s3://", "s3:/x", f"s3://u:{HIDDEN}@b/x", "~no-such-user/x", "~\x01", "..", "foo://bar"),
    *('{"a": {"base_url": "http://[::1/v1"}}', '{"a": NaN}', '{"k": "\\ud800"}', '{"": "x"}'),
]
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
values = st.one_of(
    st.sampled_from(ODD),
    texts,
    st.integers().map(str),
    st.floats().map(str),
    st.from_type(dict[str, str | int | None]).map(json.dumps),
)


def load_with(name: str, value: str) -> bool:
    with mock.patch.dict(os.environ, {"DISTILL_TEACHER__API_KEY": KEY}):
        os.environ[name] = value
        return refuse_or_take(load_settings, SettingsError, name)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_taken_or_refused_by_its_name(name):
    for value in ODD:
        load_with(name, value)


@given(st.sampled_from(SETTINGS), values.filter(lambda value: "\0" not in value))
def test_any_value_of_any_setting_is_taken_or_refused(name, value):
    load_with(name, value.encode("utf-8", "replace").decode())


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TEACHER__TIMEOUT_SECONDS", "inf", "finite"),
        ("TEACHER__TIMEOUT_SECONDS", "1e308", "less than or equal to 1000000000"),
        ("LABEL__SAMPLES", "1000000", "less than or equal to 1000"),
        ("DATA__TRAIN_LIMIT", "1" + "0" * 30, "less than or equal"),
        ("TRAIN__LEARNING_RATE", "inf", "finite"),
        ("STORAGE__ROOT", "a\nb", r"control character '\\n'"),
        ("STUDENT__MODEL", "~no-such-user/x", "no user of this name"),
        ("DATA__SOURCE", "x" * 5000, "at most 4096 characters"),
        ("RUN", "x" * 300, "up to 200 letters"),
        ("REPORT__SERVE", "localhost:99999", "should be host:port"),
        ("TEACHER__BASE_URL", "http://x:99999/v1", "[Pp]ort"),
        ("TEACHER__BASE_URL", f"https://x/v1?key={HIDDEN}", "DISTILL_TEACHER__API_KEY"),
        ("TEACHER__EXTRA_BODY", "[" * 100_000, "should be a JSON object"),
        ("TRAIN__PUSH_TO", "no name", "should match pattern"),
    ],
)
def test_a_value_that_would_fail_later_is_refused_at_once(settings, name, value, told):
    with pytest.raises(SettingsError, match=told) as raised:
        settings(**{name: value})
    assert HIDDEN not in str(raised.value)


def test_a_prefix_may_end_in_a_line_break(settings):
    assert settings(DATA__TEXT_PREFIX="Text:\n").data.text_prefix == "Text:\n"


def test_what_is_shown_is_one_short_line():
    assert shorten("a\n b\x1b[31m " * 1000).startswith(r"a b\x1b[31m a b")
    assert len(shorten("x" * 10**6)) == 300
    deep: list[object] = []
    for _ in range(10**5):
        deep = [deep]
    for value in (deep, "x" * 10**6, {"a": "\n" * 10**6}):
        assert len(show(value)) < 300
        assert show(value).isprintable()


# Task and price files

TOML = [
    *('""', '" "', '"x"', '"{text}"', "5", "-1", "1.5", "nan", "inf", "true", "[]", '["x"]', "[1]"),
    *("[[]]", "{}", "{a = 1}", "1979-05-27", "[{}]", r'"a\nb"', r'"\u0000{text}"', "9" * 30),
    *("9" * 5000, '"' + "x" * 10_000 + '"', '["("]', '"(.)(.)"', '"$..x"', '[""]', "1e400"),
    *(r'"a\u202e"', "[" * 10_000, "{a=" * 3000, '"{text} "', '["en", "xx"]'),
]
TASK_FIELDS = [
    *("name", "description", "metrics", "columns", "unseen", "teacher", "few_shot", "student"),
    *("columns.text", "columns.text_prefix", "columns.reference", "columns.groups"),
    *("teacher.system", "teacher.user", "teacher.response_format", "teacher.completion"),
    *("teacher.completion.start", "teacher.completion.end", "teacher.completion.stop"),
    *("student.prompt", "student.rationale", "label_rules", "nonsense", "label_rules.nonsense"),
    *("label_rules.extract", "label_rules.unquote", "label_rules.allowed"),
    *("label_rules.reject_patterns", "label_rules.min_length_ratio"),
    *("label_rules.max_length_ratio", "label_rules.languages", "label_rules.max_edit_ratio"),
]
TEXT = "a text of more than twenty characters"


def use_task(content: bytes) -> bool:
    """Whether it is a task; if so, uses it."""
    Path("task.toml").write_bytes(content)
    if not refuse_or_take(lambda: load_task("./task.toml"), InputError, "./task.toml"):
        return False
    task = load_task("./task.toml")
    assert task.label_fingerprint
    assert task.make_messages(TEXT)
    assert TEXT in task.make_completion_prompt(TEXT)
    assert TEXT in task.make_student_prompt(TEXT)
    row = make_label(Example(hash_text(TEXT), TEXT), [make_reply('x: [1] {"a": 2}')], task)
    assert row.status in ("ok", "filtered")
    return True


def make_reply(text: str) -> Reply:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return Reply("key", 200, json.dumps({"choices": [choice]}), 1, 1.0)


@pytest.mark.parametrize("field", TASK_FIELDS)
def test_a_field_of_a_task_is_taken_or_refused(field):
    start = "" if field == "name" else 'name = "t"\n'
    for value in TOML:
        use_task(f"{start}{field} = {value}\n".encode())


PRICE = {"model": '"m"', "input": "1", "output": "2"}


def use_prices(content: bytes) -> bool:
    Path("prices.toml").write_bytes(content)
    own = TeacherSettings(model="m", base_url="http://x/v1", prices="prices.toml")
    if not refuse_or_take(lambda: find_price(own), InputError, "prices.toml"):
        return False
    price = find_price(own)
    assert price is None or price.worst_cost(10, 10, "batch") >= 0
    return True


@pytest.mark.parametrize(
    "field",
    ["model", "host", "input", "output", "cached_input", "cache_write", "batch_input", "more"],
)
def test_a_field_of_a_price_is_taken_or_refused(field):
    for value in TOML:
        lines = [f"{name} = {given}" for name, given in (PRICE | {field: value}).items()]
        use_prices("\n".join(["[[price]]", *lines]).encode())


@pytest.mark.parametrize("use", [use_task, use_prices])
@pytest.mark.parametrize(
    "content",
    [
        b"[a" + b".a" * 5000 + b"]\n",
        b"[[price]]\nmodel." + b"a." * 3000 + b"b = 1",
        b"price = 1",
        b"price = [1, {model = 'm'}]",
        b"price = [[1]]",
        b"\xef\xbb\xbfname = 't'",
        "name = 't'".encode("utf-16"),
        b'{"name": "t"}',
        b"name = 't'\0",
    ],
)
def test_another_shape_of_file_is_refused(use, content):
    assert not use(content)


@given(st.data())
def test_a_damaged_task_file_is_taken_or_refused(data):
    path = Path(__file__).parents[1] / "common/tasks/gec.toml"
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    inserted = data.draw(st.binary(max_size=3))
    content[place : place + data.draw(st.integers(0, 3))] = inserted
    use_task(bytes(content))


@given(texts.filter(lambda name: len(name) < 200))
def test_any_name_of_a_task_is_refused_in_one_line(name):
    given_name = name.replace("/", "") or "x"
    refuse_or_take(lambda: load_task(given_name), DistillError)


# The teacher's answers

ANSWER = {
    "id": "x",
    "choices": [
        {
            "index": 0,
            "message": {"content": "hi", "reasoning_content": "thought", "refusal": None},
            "finish_reason": "stop",
            "logprobs": {
                "content": [
                    {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "a", "logprob": -1}]}
                ]
            },
        }
    ],
    "usage": {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
        "cost": 0.1,
        "is_byok": True,
        "cost_details": {"upstream_inference_cost": 1},
    },
    "service_tier": "flex",
    "error": None,
}
LEGACY = {
    "choices": [
        {
            "text": "hi",
            "finish_reason": "stop",
            "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}]},
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3},
}
REFUSAL = {
    "error": {
        "message": "m",
        "type": "t",
        "code": "c",
        "param": "p",
        "details": [{"violations": [{"quotaId": "q"}], "retryDelay": "3s"}],
        "metadata": {"raw": "r"},
    }
}
STATUSES = [0, 200, 400, 404, 429, 500, 503, 999]
LONG = ["<think>" * 1000, "[" * 5000, "x" * 100_000, [{"type": "text", "text": []}], [None]]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def label_by(body: str, status: int = 200) -> None:
    """Makes a typed row of a body, whatever it holds, that can be stored and costs a number."""
    reply = Reply("key", status, body, 1, 0.1, 10, 100)
    assert 0 <= find_cost(Price(1, 2, 0.5), reply, read_answer(reply), 100) < 1e7
    for part in split_reply(reply, ["one", "two"]):
        row = make_label(Example(hash_text(TEXT), TEXT), [part], Task(name="t"))
        assert row.status in ("ok", "failed", "filtered")
        assert (row.label is None) == (row.status != "ok") == (row.error is not None)
        assert make_label_table([row]).validate(full=True) is None
    error = read_error(body)
    assert match_rule(status, error)
    assert max(map(len, (error.codes, error.message, error.parameter))) <= 500
    assert decode_line(encode_line(reply)) is not None


@pytest.mark.parametrize("good", [ANSWER, LEGACY, REFUSAL], ids=["chat", "completions", "error"])
def test_an_answer_with_any_odd_value_is_a_typed_row(good):
    for path in list_paths(good):
        for value in [*JUNK, *LONG, ...]:
            label_by(json.dumps(replace_at(good, path, value)), 400 if good is REFUSAL else 200)


@given(st.sampled_from(STATUSES), st.text() | json_values.map(json.dumps))
def test_any_body_of_any_status_is_a_typed_row(status, body):
    label_by(body, status)


@given(st.sampled_from([ANSWER, LEGACY, REFUSAL]), st.data())
def test_an_answer_with_any_value_anywhere_is_a_typed_row(good, data):
    path = data.draw(st.sampled_from(list(list_paths(good))))
    changed = replace_at(good, path, data.draw(json_values))
    label_by(json.dumps(changed), data.draw(st.sampled_from(STATUSES)))


def test_a_long_code_of_an_error_is_no_work():
    body = json.dumps({"error": {"code": "<think>" * 100_000, "message": "m"}})
    with mock.patch.object(sys, "setrecursionlimit"):
        label_by(body, 429)


def test_a_cost_that_cannot_be_is_not_believed():
    reply = Reply("key", 200, json.dumps(replace_at(ANSWER, ("usage", "cost"), 1e30)), 1, 0.1, 9, 9)
    assert find_cost(Price(1, 2, 0.5), reply, read_answer(reply), 100) < 1
    assert find_cost(None, Reply("k", 200, "{}", 1, 0.1, cost_usd=1e300), read_answer(reply), 9) < 1


@given(st.text(max_size=40) | st.sampled_from(["9" * 400, "1" * 5000 + "s", "1.1.1s", "1e400"]))
def test_any_header_tells_a_number_of_seconds_or_nothing(value):
    for seconds in (parse_retry_after(value), parse_reset(value)):
        assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    "value",
    [
        *("9" * 400, "1" * 5000 + "s", "1.1.1s", "-5s", "1e400", "nan", "infinity", "١s", " 5 "),
        *("Wed, 99 Oct 2015 07:28:00 GMT", "Mon, 01 Jan 99999 00:00:00 GMT", "0001-01-01T00:00:00"),
        *("9999-12-31T23:59:59-23:59", "Thu, 01 Jan 1970 00:00:00 -999999999999", "9" * 20),
    ],
)
def test_an_odd_header_tells_a_number_of_seconds_or_nothing(value):
    for seconds in (parse_retry_after(value), parse_reset(value)):
        assert seconds is None or 0 <= seconds < float("inf")
