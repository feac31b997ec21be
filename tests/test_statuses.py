"""What each status means, over the table as a whole; test_teacher.py has the calls themselves."""

import json

import pytest

from common.teacher.statuses import Action, find_rule, name_error


def error(message="no", code=None):
    return json.dumps({"error": {"message": message, "code": code}})


@pytest.mark.parametrize(
    ("status", "body", "action", "name"),
    [
        (200, "{}", Action.ANSWER, ""),
        (0, "timeout: no answer in 60 s", Action.RETRY, "timeout"),
        (0, "connection: reset", Action.RETRY, "connection"),
        (401, error(), Action.STOP_KEY, "refused"),
        (402, "", Action.STOP_KEY, "refused"),
        (403, "<html>", Action.STOP_KEY, "refused"),
        (429, error(code="insufficient_quota"), Action.STOP_KEY, "refused"),
        (429, error(code="billing_hard_limit_reached"), Action.STOP_KEY, "refused"),
        (429, error("insufficient_quota of patience"), Action.THROTTLE, "rate_limit"),
        (429, "", Action.THROTTLE, "rate_limit"),
        (400, error(code="model_not_found"), Action.STOP_MODEL, "refused"),
        (400, error("The model `x` does not exist"), Action.STOP_MODEL, "refused"),
        (404, error(code="model_not_found"), Action.STOP_MODEL, "refused"),
        (404, error("no such model"), Action.STOP_MODEL, "refused"),
        (404, '{"detail":"Not Found"}', Action.STOP_URL, "refused"),
        (405, "", Action.STOP_URL, "refused"),
        (501, "", Action.STOP_URL, "refused"),
        (501, error("this model cannot"), Action.RETRY, "server_error"),
        (408, "", Action.RETRY, "server_error"),
        (409, "", Action.RETRY, "server_error"),
        (425, "", Action.RETRY, "server_error"),
        (500, error(), Action.RETRY, "server_error"),
        (529, "overloaded", Action.RETRY, "server_error"),
        (301, "", Action.RETRY, "server_error"),
        (400, error(code="context_length_exceeded"), Action.FAIL, "context_length"),
        (400, error(code="content_policy_violation"), Action.FAIL, "content_policy"),
        (422, error(), Action.FAIL, "bad_request"),
        (413, "", Action.FAIL, "bad_request"),
        (405, error("this model cannot"), Action.FAIL, "bad_request"),
        (400, "[" * 100_000, Action.FAIL, "bad_request"),
    ],
)
def test_what_an_answer_means(status, body, action, name):
    assert (find_rule(status, body).action, name_error(status, body)) == (
        action,
        name or body.split(":")[0],
    )
