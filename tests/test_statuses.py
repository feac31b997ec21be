"""What each status means, over the table as a whole; test_faults.py has the calls themselves."""

import json

import pytest

from common.quota.protocol import Blame
from common.teacher.statuses import Action, find_rule, name_error


def error(message="no", code=None, **more):
    return json.dumps({"error": {"message": message, "code": code, **more}})


@pytest.mark.parametrize(
    ("status", "body", "action", "name"),
    [
        (200, "{}", Action.ANSWER, ""),
        (0, "timeout: no answer in 60 s", Action.RETRY, "timeout"),
        (0, "connection: reset", Action.RETRY, "connection"),
        (429, error("slow down"), Action.THROTTLE, "rate_limit"),
        (429, "", Action.THROTTLE, "rate_limit"),
        (408, "", Action.RETRY, "server_error"),
        (409, "", Action.RETRY, "server_error"),
        (425, "", Action.RETRY, "server_error"),
        (498, "", Action.RETRY, "server_error"),
        (500, error(), Action.RETRY, "server_error"),
        (501, error("this model cannot"), Action.RETRY, "server_error"),
        (520, "<html>", Action.RETRY, "server_error"),
        (529, "overloaded", Action.RETRY, "server_error"),
    ],
)
def test_what_passes(status, body, action, name):
    rule = find_rule(status, body)
    assert (rule.action, name_error(status, body)) == (action, name or body.split(":")[0])


@pytest.mark.parametrize(
    ("status", "body", "blame", "name"),
    [
        (401, error(), Blame.CERTAIN, "refused"),
        (402, "", Blame.CERTAIN, "refused"),
        (429, error(code="insufficient_quota"), Blame.CERTAIN, "refused"),
        (429, error(type="insufficient_quota"), Blame.CERTAIN, "refused"),
        (429, error("Insufficient quota for this key"), Blame.CERTAIN, "refused"),
        (403, error(code="InsufficientQuota"), Blame.JOB, "refused"),
        (429, error(type="exceeded_current_quota_error"), Blame.CERTAIN, "refused"),
        (429, error(code="billing_hard_limit_reached"), Blame.CERTAIN, "refused"),
        (400, error("Your credit balance is too low"), Blame.JOB, "refused"),
        (400, error("Access denied", code="Arrearage"), Blame.JOB, "refused"),
        (400, error("Budget has been exceeded! Current cost: 1"), Blame.JOB, "refused"),
        (429, error("Limit 200 on requests per day (RPD)"), Blame.CERTAIN, "rate_limit"),
        (400, error(code="model_not_found"), Blame.JOB, "refused"),
        (400, error("The model `x` does not exist"), Blame.JOB, "refused"),
        (404, error('model "x" not found, try pulling it first'), Blame.JOB, "refused"),
        (400, error("The model `x` has been decommissioned"), Blame.JOB, "refused"),
        (400, "[" + error("API key not valid. Please pass one.") + "]", Blame.JOB, "refused"),
        (301, "to http://elsewhere/", Blame.JOB, "refused"),
        (403, "<html>", Blame.DOUBT, "refused"),
        (404, error("No endpoints found matching your data policy"), Blame.DOUBT, "refused"),
        (404, error("no such model here"), Blame.DOUBT, "refused"),
        (404, '{"detail":"Not Found"}', Blame.DOUBT, "refused"),
        (405, "", Blame.DOUBT, "refused"),
        (501, "", Blame.DOUBT, "refused"),
        (422, error(), Blame.DOUBT, "bad_request"),
        (400, error("No connected db.", type="no_db_connection"), Blame.DOUBT, "bad_request"),
        (405, error("this model cannot"), Blame.DOUBT, "bad_request"),
        (400, "[" * 100_000, Blame.DOUBT, "bad_request"),
        (400, error(code="context_length_exceeded"), Blame.ROW, "context_length"),
        (400, error("prompt is too long: 9000 tokens > 8192 maximum"), Blame.ROW, "context_length"),
        (413, "", Blame.ROW, "context_length"),
        (400, error(code="content_policy_violation"), Blame.ROW, "content_policy"),
        (
            400,
            error("The response was filtered", code="content_filter"),
            Blame.ROW,
            "content_policy",
        ),
        (403, error("Input was flagged by moderation"), Blame.ROW, "content_policy"),
    ],
)
def test_what_is_refused_and_who_is_at_fault(status, body, blame, name):
    rule = find_rule(status, body)
    assert (rule.action, rule.blame, name_error(status, body)) == (Action.FAIL, blame, name)
