"""What replies of all shapes say."""

import json

import pytest

from common.teacher.replies import Reply, read_answer, split_reply
from common.teacher.usage import Usage


def reply(content, status=200):
    body = content if isinstance(content, str) else json.dumps(content)
    return Reply("key", status, body, 1, 0.5, 100)


def chat(content, reason="stop", usage=None, **message):
    choice = {"message": {"content": content, **message}, "finish_reason": reason}
    return {"choices": [choice]} | ({"usage": usage} if usage else {})


@pytest.mark.parametrize(
    ("content", "message", "text", "reasoning"),
    [
        ("fine", {}, "fine", None),
        ("fine", {"reasoning_content": "hm"}, "fine", "hm"),
        ("fine", {"reasoning": "hm"}, "fine", "hm"),
        ("fine", {"reasoning": "hm", "reasoning_content": "hm"}, "fine", "hm"),
        ("<think>hm</think>\n\nfine", {}, "fine", "hm"),
        ("hm</think>fine", {}, "fine", "hm"),
        ("<think>a</think>b</think>fine", {}, "fine", "a</think>b"),
        ("<thinking>hm</thinking>fine", {}, "fine", "hm"),
        ("I <think> so", {}, "I <think> so", None),
        ("[THINK]hm[/THINK]fine", {}, "fine", "hm"),
        ("<THOUGHT>hm</THOUGHT>fine", {}, "fine", "hm"),
        ("<|channel|>analysis<|message|>hm<|channel|>final<|message|>fine", {}, "fine", "hm"),
        ([{"type": "text", "text": None}, {"type": "text", "text": "fine"}], {}, "fine", None),
        ([{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}], {}, "fine", None),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"text": "fine"}],
            {},
            "fine",
            "hm",
        ),
        (
            [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "fine"}],
            {},
            "fine",
            "hm",
        ),
    ],
)
def test_reasoning_is_kept_apart(content, message, text, reasoning):
    answer = read_answer(reply(chat(content, **message)))
    assert (answer.text, answer.reasoning, answer.error) == (text, reasoning, None)


@pytest.mark.parametrize("reason", ["stop", "eos", "end_turn", "STOP", "", None])
def test_good_ends(reason):
    assert read_answer(reply(chat("fine", reason))).error is None


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("length", "length"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("error", "bad_response"),
        ("tool_calls", "unfinished"),
        ("something new", "unfinished"),
    ],
)
def test_other_ends_are_typed(reason, error):
    answer = read_answer(reply(chat("half an ans", reason)))
    assert (answer.error, answer.finish_reason) == (error, reason)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", {"reasoning_content": "hm, let me"}), (None, {"reasoning": "hm"}), ("<think>hm", {})],
)
def test_an_answer_cut_off_in_its_reasoning_says_what_to_raise(content, message):
    answer = read_answer(reply(chat(content, "length", **message)))
    assert (answer.text, answer.error) == ("", "length")
    assert "inside its reasoning; raise DISTILL_TEACHER__MAX_TOKENS" in answer.message
    assert answer.reasoning


def test_a_refusal_is_a_refusal():
    answer = read_answer(reply(chat(None, refusal="I cannot do this.")))
    assert (answer.error, answer.message) == ("refusal", "I cannot do this.")


def test_a_byte_order_mark_is_passed_over():
    assert read_answer(reply("\ufeff" + json.dumps(chat("fine")))).text == "fine"


@pytest.mark.parametrize(
    ("content", "status", "error"),
    [
        ({"error": {"code": 502, "message": "bad gateway"}}, 502, "server_error"),
        ({"error": {"code": 429, "message": "slow"}}, 429, "rate_limit"),
        ({"error": {"code": "rate_limit_exceeded", "message": "slow"}}, 429, "rate_limit"),
        ({"error": {"code": 402, "message": "pay"}}, 402, "refused"),
        ({"error": {"code": 401, "message": "key"}, "choices": None}, 401, "refused"),
        ({"error": "something broke"}, 500, "server_error"),
        ({"choices": [{"error": {"code": 503, "message": "down"}}]}, 503, "server_error"),
        ({"choices": None}, 200, "bad_response"),
        ({"choices": []}, 200, "bad_response"),
    ],
)
def test_an_error_in_a_good_response_counts_by_its_own_code_and_costs_nothing(
    content, status, error
):
    answer = read_answer(reply(content))
    assert (answer.status, answer.error, answer.usage) == (status, error, Usage())
    assert not answer.is_final


def test_an_answer_without_usage_or_cut_off_may_have_cost_its_worst():
    assert read_answer(reply(chat("fine"))).usage is None
    assert read_answer(reply('{"choices": [{"mess')).usage is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, Usage(10, 0, 5, 0)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 50,
                "completion_tokens_details": {"reasoning_tokens": 45},
                "prompt_tokens_details": {"cached_tokens": 4},
            },
            Usage(10, 4, 50, 45),
        ),
        # Gemini and Grok count reasoning in the total alone.
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 60}, Usage(10, 0, 50, 45)),
        ({"prompt_tokens": 10, "completion_tokens": None}, Usage(10, 0, 0, 0)),
    ],
)
def test_all_tokens_count(usage, expected):
    assert read_answer(reply(chat("fine", usage=usage))).usage == expected


def test_a_provider_s_message_is_one_line_and_of_any_shape():
    for body in (
        {"error": {"message": "first\n  second"}},
        [{"error": {"message": "first second"}}],
        {"error": "first second"},
        {"detail": "first second"},
        {"message": "first second"},
        "first\nsecond",
    ):
        assert read_answer(reply(body, 400)).message == "first second", body


def test_choices_become_replies_of_their_own():
    usage = {"prompt_tokens": 10, "completion_tokens": 9}
    choices = [chat(text)["choices"][0] for text in ("a", "b", "c")]
    replies = split_reply(reply({"choices": choices, "usage": usage}), ["k1", "k2", "k3"])
    answers = [read_answer(r) for r in replies]
    assert [r.key for r in replies] == ["k1", "k2", "k3"]
    assert [answer.text for answer in answers] == ["a", "b", "c"]
    assert [answer.usage for answer in answers] == [Usage(10, 0, 9), Usage(), Usage()]
    assert [r.key for r in split_reply(reply(chat("a")), ["k1", "k2"])] == ["k1"]
    assert [r.key for r in split_reply(reply("no", 500), ["k1", "k2"])] == ["k1", "k2"]


def test_odd_values_are_no_crash():
    answer = read_answer(
        reply('{"choices": [{"message": {"content": "x"}, "finish_reason": "\\ud800"}]}')
    )
    answer.finish_reason.encode()
    usage = {"prompt_tokens": 5, "completion_tokens": 2**62, "cost": "n/a", "is_byok": True}
    assert read_answer(reply(chat("fine", usage=usage))).usage == Usage(5, 0, 0)
    answer = read_answer(reply(chat([{"type": "refusal", "refusal": "No."}])))
    assert (answer.error, answer.message) == ("refusal", "No.")
