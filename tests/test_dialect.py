"""What a job learns of refused parameters."""

import pytest

from common.errors import SettingsError
from common.sections import TeacherSettings
from common.teacher.api_errors import ApiError
from common.teacher.dialect import adapt, describe, learn

BODY = {
    "model": "big",
    "messages": [{"role": "user", "content": "temperature"}],
    "max_tokens": 512,
    "temperature": 0.0,
}
NONE = frozenset()


def find(error, body=BODY, status=400, sent_with=NONE, **settings):
    own = TeacherSettings(base_url="http://unused/v1", model="big", **settings)
    return learn(body, status, error, own, sent_with)


@pytest.mark.parametrize(
    ("error", "learned"),
    [
        (
            ApiError(
                "unsupported_parameter invalid_request_error",
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
                "max_tokens",
            ),
            "max_tokens>max_completion_tokens",
        ),
        (
            ApiError(
                "unsupported_value",
                "Unsupported value: 'temperature' does not support 0 with this model. "
                "Only the default (1) value is supported.",
                "temperature",
            ),
            "temperature",
        ),
        (ApiError(message="max_tokens is not supported"), "max_tokens>max_completion_tokens"),
        (ApiError(message="`temperature` is deprecated for this model."), "temperature"),
        (ApiError("", "body.temperature: Extra inputs are not permitted"), "temperature"),
        (ApiError(message='Unknown name "temperature": Cannot find field.'), "temperature"),
        (ApiError(message="This model does not support the temperature parameter."), "temperature"),
        (ApiError(message="Unsupported parameter for this model: temperature"), "temperature"),
        (ApiError("invalid_request_error", "max_tokens is too large: 512"), None),
        (ApiError("", "prompt tokens + max_tokens must be <= 4096"), None),
        (ApiError("invalid_request_error", "this text cannot be corrected"), None),
        (ApiError("", "the messages are not supported", "messages[0].content"), None),
        (ApiError("", "this model is not supported"), None),
    ],
)
def test_a_refused_parameter_is_found(error, learned):
    assert find(error) == ({learned} if learned else NONE)


def test_only_a_refusal_teaches():
    error = ApiError(message="max_tokens is not supported")
    assert find(error, status=500) == NONE
    assert find(error, status=422)


def test_a_short_name_must_be_quoted():
    body = BODY | {"n": 3}
    assert find(ApiError(message="n is not a supported language"), body) == NONE
    assert find(ApiError(message="'n' must be 1 for this model"), body) == {"n"}
    assert find(ApiError(message="n must be 1 when using greedy sampling, got 3."), body) == {"n"}
    assert find(ApiError(message="Only one completion choice is allowed"), body) == {"n"}


def test_the_third_refusal_leaves_out_all_that_can_be():
    body = BODY | {"n": 3, "response_format": {"type": "json_object"}}
    known = frozenset({"max_tokens>max_completion_tokens", "n"})
    error = ApiError(message="response_format is not supported")
    assert find(error, body, sent_with=known) == {"temperature", "response_format"}


@pytest.mark.parametrize(
    ("settings", "body", "parameter", "name"),
    [
        ({"temperature": 0.7}, BODY | {"temperature": 0.7}, "temperature", "TEMPERATURE"),
        ({"logprobs": 2}, BODY | {"logprobs": True, "top_logprobs": 2}, "top_logprobs", "LOGPROBS"),
        ({"extra_body": {"seed": 1}}, BODY | {"seed": 1}, "seed", "EXTRA_BODY"),
    ],
)
def test_a_value_of_the_user_s_own_is_never_dropped(settings, body, parameter, name):
    error = ApiError("unsupported_parameter", "not with this model", parameter)
    with pytest.raises(SettingsError, match=f"DISTILL_TEACHER__{name}: .*{parameter}"):
        find(error, body, **settings)


def test_a_request_is_adapted_and_described():
    adaptations = frozenset({"max_tokens>max_completion_tokens", "temperature"})
    adapted = adapt(BODY, adaptations)
    assert adapted == {
        "model": "big",
        "messages": BODY["messages"],
        "max_completion_tokens": 512,
    }
    assert describe(adaptations) == ["max_completion_tokens for max_tokens", "no temperature"]
