"""Faults stay where they belong: in a row, in the job, or in a teacher that is down for a while."""

import json
import re
import socket
import threading
import time
from collections import Counter

import pytest
from aiohttp import web

from common.errors import (
    CostCapError,
    DistillError,
    InputError,
    SettingsError,
    TeacherRefusedError,
)
from common.labels.lanes.local import LocalLane
from common.quota import health
from common.records import hash_text
from common.teacher import client
from common.teacher.listing import find_end
from common.teacher.replies import Reply, split_reply
from support.fake_teacher import make_body, refuse, running_teacher
from support.labelling import label_texts


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(client, "_BACKOFF_SECONDS", (0.02, 0.1))
    monkeypatch.setattr(health, "_PROBE_SECONDS", (0.05, 0.1))
    monkeypatch.setattr("common.teacher.connection._CHECK_ATTEMPTS", 1)


@pytest.fixture
def label(settings):
    """Labels texts in this process; gives the rows by text, and the calls' figures."""

    def label(url, texts, **values):
        given = {"TEACHER__BASE_URL": url, "TEACHER__MODEL": "big", "TEACHER__MAX_CONCURRENCY": 32}
        return label_texts(settings(**given | values), texts, LocalLane)

    return label


def list_texts(count):
    return [f"text {i}" for i in range(count)]


def count(rows):
    return Counter(row.error or row.status for row in rows.values())


def reasoning_style(text, body):
    """As present reasoning models do."""
    if "max_tokens" in body:
        message = "'max_tokens' is not supported. Use 'max_completion_tokens' instead."
        return refuse(400, message, "unsupported_parameter")
    if body.get("temperature", 1) != 1:
        return refuse(400, "'temperature' does not support 0 with this model.", "unsupported_value")
    return text.upper()


def test_a_reasoning_model_is_asked_as_it_likes_it(label):
    with running_teacher(lambda t, c: reasoning_style(t, teacher.bodies[c - 1])) as teacher:
        teacher.seconds = 0.01
        rows, figures = label(teacher.url, list_texts(300))
        assert count(rows) == {"ok": 300}
        assert len(teacher.bodies) == 302
        assert figures["adaptations"] == ["max_completion_tokens for max_tokens", "no temperature"]
        assert teacher.bodies[-1]["max_completion_tokens"] == 512
        rows, _ = label(teacher.url, list_texts(300))
        assert count(rows) == {"ok": 300}
        assert (len(teacher.bodies), teacher.paid_again) == (302, 0)


def test_what_a_teacher_takes_is_learned_cheaply_although_the_first_row_is_refused(label):
    def answer(text, call):
        return (
            refuse(400, "no", "content_filter")
            if text == first
            else reasoning_style(text, teacher.bodies[call - 1])
        )

    first = min(list_texts(300), key=hash_text)
    with running_teacher(answer) as teacher:
        teacher.seconds = 0.01
        rows, _ = label(teacher.url, list_texts(300))
        assert count(rows) == {"ok": 299, "content_policy": 1}
        assert len(teacher.bodies) <= 303


def test_an_error_beside_empty_choices_is_no_refusal_of_several_samples():
    body = '{"choices": [], "error": {"code": 400, "message": "no"}}'
    replies = split_reply(Reply("", 200, body, 1, 0.1), ["a", "b"])
    assert [reply.key for reply in replies] == ["a", "b"]


def test_a_setting_of_the_user_s_own_that_is_refused_is_an_error(label):
    with running_teacher(lambda t, c: reasoning_style(t, teacher.bodies[c - 1])) as teacher:
        with pytest.raises(SettingsError, match=r"DISTILL_TEACHER__TEMPERATURE: .*0\.3"):
            label(teacher.url, list_texts(30), TEACHER__TEMPERATURE=0.3)
        assert len(teacher.bodies) <= 3


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (lambda: refuse(403, "flagged by moderation"), "content_policy"),
        (lambda: web.Response(status=403, text="<html>firewall</html>"), "refused"),
        (lambda: refuse(404, "No endpoints found matching your data policy"), "refused"),
        (lambda: refuse(400, "something"), "bad_request"),
        (lambda: web.Response(status=405), "refused"),
        (lambda: web.Response(text="<!DOCTYPE html><p>blocked</p>"), "bad_response"),
    ],
)
@pytest.mark.parametrize("place", [0, 150])
def test_a_row_that_is_refused_fails_alone(label, response, error, place):
    def answer(text, call):
        return response() if text == f"text {place}" else text

    with running_teacher(answer) as teacher:
        for calls in (300, 301):  # the second run asks for that row alone
            rows, _ = label(teacher.url, list_texts(300))
            assert count(rows) == {"ok": 299, error: 1}
            assert len(teacher.bodies) == calls


def test_a_certain_word_that_comes_after_answers_fails_its_row_alone(label):
    def answer(text, call):
        return refuse(404, "no", "model_not_found") if text == "text 7" else text

    with running_teacher(answer) as teacher:
        rows, _ = label(teacher.url, list_texts(30))
        assert count(rows) == {"ok": 29, "refused": 1}


@pytest.mark.parametrize(
    ("response", "error", "word", "calls"),
    [
        (lambda n: refuse(401, "wrong key"), TeacherRefusedError, "API_KEY", 1),
        (lambda n: refuse(402, "pay"), TeacherRefusedError, "credit", 1),
        (lambda n: refuse(429, "no", "insufficient_quota"), TeacherRefusedError, "credit", 1),
        (lambda n: refuse(404, "no", "model_not_found"), TeacherRefusedError, "__MODEL", 1),
        (lambda n: refuse(403, "forbidden"), TeacherRefusedError, "permissions", 20),
        (lambda n: refuse(400, f"No connected db. Request {n}"), InputError, "No connected db", 20),
        (lambda n: refuse(400, "no", "content_filter"), InputError, "prompt", 20),
        (lambda n: web.Response(status=404, text="<html>"), InputError, "ends in /v1", 20),
        (lambda n: web.Response(status=501, text="<html>"), InputError, "ends in /v1", 20),
        (lambda n: web.Response(text="<html>log in</html>"), InputError, "ends in /v1", 20),
        (
            lambda n: web.json_response([{"error": {"message": "API key not valid"}}], status=400),
            TeacherRefusedError,
            "API_KEY",
            1,
        ),
    ],
)
def test_a_job_whose_rows_are_all_refused_alike_stops(label, response, error, word, calls):
    with running_teacher(lambda text, call: response(call)) as teacher:
        teacher.seconds = 0.01
        with pytest.raises(error, match=word):
            label(teacher.url, list_texts(300))
        assert calls <= len(teacher.bodies) <= max(1, 2 * (calls - 1))


def test_a_few_rows_that_are_all_refused_stop_the_job(label):
    with (
        running_teacher(lambda text, call: refuse(400, "what is this?")) as teacher,
        pytest.raises(InputError, match="what is this"),
    ):
        label(teacher.url, list_texts(3))


def test_a_key_that_is_forbidden_in_mid_run_stops_the_job(label):
    with running_teacher(lambda t, c: t if c <= 50 else refuse(403, "forbidden")) as teacher:
        with pytest.raises(TeacherRefusedError, match="forbidden"):
            label(teacher.url, list_texts(600))
        assert len(teacher.bodies) < 300


def test_a_listing_that_is_refused_says_nothing(label):
    with running_teacher(lambda text, call: text) as teacher:
        rows, _ = label(teacher.url.removesuffix("/v1") + "/unlisted/v1", list_texts(3))
        assert count(rows) == {"ok": 3}


def test_the_url_may_have_a_query_and_requests_more_parameters_and_headers(label):
    seen = []
    with running_teacher(lambda text, call: text) as teacher:
        teacher.watch = lambda request: seen.append({**request.headers, **request.query})
        label(
            teacher.url + "?api-version=2026-01",
            ["one"],
            TEACHER__EXTRA_BODY='{"reasoning_effort": "low"}',
            TEACHER__EXTRA_HEADERS='{"api-key": "canary"}',
        )
        assert teacher.bodies[0]["reasoning_effort"] == "low"
    assert (seen[0]["api-key"], seen[0]["api-version"]) == ("canary", "2026-01")
    assert "Authorization" not in seen[0]


def down(first, seconds, failure):
    """A teacher that is down for some seconds after its first answers."""
    since = []

    def answer(text, call):
        if call <= first:
            return text
        since.append(time.monotonic())
        return text if time.monotonic() - since[0] > seconds else failure()

    return answer


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionResetError,
        lambda: refuse(503, "overloaded"),
        lambda: refuse(500, "broken"),
        lambda: web.Response(status=502, text="<html>bad gateway</html>"),
        lambda: web.json_response({"error": {"code": 502, "message": "upstream"}}),
    ],
)
def test_an_outage_costs_no_row_and_few_calls(label, failure):
    with running_teacher(down(100, 2.0, failure)) as teacher:
        teacher.seconds = 0.01
        rows, figures = label(teacher.url, list_texts(1000), TEACHER__MAX_ATTEMPTS=5)
        assert count(rows) == {"ok": 1000}
        assert figures["retries"] < 200


def test_a_server_that_loads_its_model_is_waited_for(label):
    with running_teacher(down(0, 1.0, lambda: refuse(503, "Loading model"))) as teacher:
        rows, _ = label(teacher.url, list_texts(6), TEACHER__MAX_ATTEMPTS=2)
        assert count(rows) == {"ok": 6}
        assert len(teacher.bodies) < 40


def test_a_teacher_that_stays_down_ends_the_job(label):
    with running_teacher(lambda t, c: t if c <= 10 else refuse(503, "overloaded")) as teacher:
        with pytest.raises(
            DistillError, match=r"no answer for \d+ s \(503 overloaded\); run again"
        ):
            label(teacher.url, list_texts(100), TEACHER__OUTAGE_SECONDS=1)
        assert len(teacher.bodies) < 100


def test_a_server_that_never_starts_ends_the_job(label):
    with (
        running_teacher(lambda text, call: refuse(503, "Loading model")) as teacher,
        pytest.raises(DistillError, match=r"STARTUP_SECONDS=0\.5"),
    ):
        label(teacher.url, list_texts(6), TEACHER__STARTUP_SECONDS=0.5)


def test_rows_that_break_the_server_fail_alone(label):
    def answer(text, call):
        return refuse(500, "broken") if text.endswith("7") else text

    with running_teacher(answer) as teacher:
        teacher.seconds = 0.01
        rows, _ = label(teacher.url, list_texts(300), TEACHER__MAX_ATTEMPTS=3)
        assert count(rows) == {"ok": 270, "server_error": 30}
        assert len(teacher.bodies) <= 270 + 30 * 3


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("wait", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_teacher_that_asks_to_wait_too_long_ends_the_job(label, status, wait):
    def answer(text, call):
        return refuse(status, "busy", headers={"Retry-After": wait})

    with running_teacher(answer) as teacher:
        with pytest.raises(DistillError, match=r"asks to wait \d+ s \(\d+ busy\); run again then"):
            label(teacher.url, list_texts(100))
        assert len(teacher.bodies) == 1


@pytest.mark.parametrize("headers", [{"retry-after-ms": "700"}, {"Retry-After": "0.7"}, {}])
def test_a_wait_is_heard_wherever_it_is_said(label, headers):
    retry = [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "0.7s"}]
    error = {"code": 429, "message": "slow down", "details": [] if headers else retry}

    def answer(text, call):
        response = web.json_response([{"error": error}], status=429, headers=headers)
        return response if call == 1 else text

    with running_teacher(answer) as teacher:
        label(teacher.url, ["one"])
        assert 0.7 <= teacher.began[1] - teacher.began[0] < 1.5


def test_a_daily_limit_ends_the_job(label):
    violations = [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]
    details = [{"violations": violations}, {"retryDelay": "34s"}]
    error = {"code": 429, "message": "You exceeded your current quota", "details": details}

    def answer(text, call):
        return text if call < 10 else web.json_response({"error": error}, status=429)

    with running_teacher(answer) as teacher:
        with pytest.raises(DistillError, match="midnight, Pacific time"):
            label(teacher.url, list_texts(300))
        assert len(teacher.bodies) < 60


def test_an_error_in_a_good_response_is_tried_again_and_costs_nothing(label, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "big"\ninput = 1.0\noutput = 10.0\n', "utf-8")

    def answer(text, call):
        return web.json_response({"error": {"code": 502, "message": "x"}}) if call == 2 else text

    with running_teacher(answer) as teacher:
        rows, figures = label(teacher.url, list_texts(10), TEACHER__PRICES=prices)
        assert count(rows) == {"ok": 10}
        assert figures["cost_usd"] == pytest.approx(10 * (10 * 1.0 + 5 * 10.0) / 1e6)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
def test_a_secret_that_the_server_echoes_is_written_nowhere(label, status, tmp_path, caplog):
    secrets = ["sk-canary-0123456789", "second-canary-987654"]

    def answer(text, call):
        echo = f"your keys are {secrets[0]} and {secrets[1]}"
        return echo if status == 200 else refuse(status, echo)

    with running_teacher(answer) as teacher:
        values = {
            "TEACHER__API_KEY": secrets[0],
            "TEACHER__EXTRA_HEADERS": json.dumps({"x-key": secrets[1]}),
            "TEACHER__MAX_ATTEMPTS": 2,
        }
        try:
            text = repr(label(teacher.url, list_texts(2), **values))
        except DistillError as error:
            text = repr(error)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    text += caplog.text + "".join(path.read_text("utf-8", "replace") for path in files)
    assert "[secret]" in text
    assert not [secret for secret in secrets if secret in text]


def test_several_samples_come_of_one_request_where_the_server_takes_it(label):
    def answer(text, call):
        body = make_body(text)
        wanted = teacher.bodies[call - 1].get("n", 1)
        body["choices"] = [body["choices"][0] | {"index": i} for i in range(wanted)]
        return web.json_response(body)

    with running_teacher(answer) as teacher:
        values = {"LABEL__SAMPLES": 3, "TEACHER__TEMPERATURE": 0.7}
        rows, _ = label(teacher.url, list_texts(20), **values)
        assert count(rows) == {"ok": 20}
        assert {(row.samples, row.prompt_tokens) for row in rows.values()} == {(3, 10)}
        label(teacher.url, list_texts(20), **values)
        assert len(teacher.bodies) == 20


@pytest.mark.parametrize("refuses", [True, False])
def test_samples_are_asked_for_one_by_one_where_the_server_takes_no_n(label, refuses):
    def answer(text, call):
        if refuses and "n" in teacher.bodies[call - 1]:
            return refuse(400, "'n' is not supported")
        return text

    with running_teacher(answer) as teacher:
        values = {"LABEL__SAMPLES": 3, "TEACHER__TEMPERATURE": 0.7}
        rows, _ = label(teacher.url, list_texts(20), **values)
        assert {(row.samples, row.prompt_tokens) for row in rows.values()} == {(3, 30)}
        assert len(teacher.bodies) == 60 + refuses


def test_a_proxy_is_not_asked_for_loopback(label, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with running_teacher(lambda text, call: text) as teacher:
        rows, _ = label(teacher.url, ["one"])
        assert count(rows) == {"ok": 1}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in the openai package
def test_an_error_through_a_proxy_names_it(label, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://user:password@127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"through the proxy http://127\.0\.0\.1:9\)") as raised:
        label("http://teacher.invalid/v1", ["one"])
    assert "password" not in str(raised.value)


@pytest.mark.parametrize("place", ["/unlisted/v1/chat/completions", "http://127.0.0.2:9/v1"])
def test_a_redirect_is_followed_on_the_same_server_alone(label, place):
    def answer(text, call):
        is_first = not seen[-1].startswith("/unlisted")
        return web.Response(status=307, headers={"Location": place}) if is_first else text

    seen = []
    with running_teacher(answer) as teacher:
        teacher.watch = lambda request: seen.append(request.path)
        if place.startswith("/"):
            rows, _ = label(teacher.url, list_texts(5), TEACHER__MAX_CONCURRENCY=1)
            assert count(rows) == {"ok": 5}
        else:
            with pytest.raises(InputError, match=r"redirects \(307 to http://127\.0\.0\.2:9/v1\)"):
                label(teacher.url, list_texts(5))


@pytest.mark.parametrize("status", [301, 302])
def test_a_redirect_that_loses_the_request_names_the_new_address(label, status):
    def answer(text, call):
        place = teacher.url.replace("/v1", "/unlisted/v1/models")
        return web.Response(status=status, headers={"Location": place})

    with (
        running_teacher(answer) as teacher,
        pytest.raises(InputError, match=r"redirects .*/unlisted/v1/models"),
    ):
        label(teacher.url, list_texts(30))


def find_free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_server_that_starts_later_is_waited_for(label, caplog):
    caplog.set_level("INFO")
    port, is_done = find_free_port(), threading.Event()

    def serve():
        is_done.wait(1.0)
        with running_teacher(lambda text, call: text.upper(), port):
            is_done.wait(30)

    server = threading.Thread(target=serve)
    server.start()
    try:
        rows, _ = label(f"http://127.0.0.1:{port}/v1", ["one"])
    finally:
        is_done.set()
        server.join()
    assert rows["one"].label == "ONE"
    assert re.search(r"nothing answers at http.*; waiting up to 120 s for it to start", caplog.text)


def test_a_server_that_never_listens_ends_the_job(label):
    with pytest.raises(DistillError, match=r"/v1': nothing answers there in 1 s .*STARTUP") as end:
        label(f"http://127.0.0.1:{find_free_port()}/v1", ["one"], TEACHER__STARTUP_SECONDS=1)
    assert end.value.exit_code == 1


def test_an_unknown_host_is_an_input_error_soon(label):
    with pytest.raises(InputError, match=r"http://nosuch\.invalid/v1': nothing answers there"):
        label("http://nosuch.invalid/v1", ["one"])


def tell_cost(dollars):
    """A whole response that tells its cost, as OpenRouter's do."""
    body = make_body("fine")
    body["usage"] |= {"cost": dollars}
    return web.json_response(body)


@pytest.mark.parametrize("in_header", [True, False])
def test_a_cap_holds_by_the_cost_that_replies_tell(label, in_header):
    """The ledger is the server's own; the price is unknown."""

    def answer(text, call):
        if not in_header:
            return tell_cost(0.001)
        headers = {"x-litellm-response-cost": "0.001"}
        return web.json_response(make_body("fine"), headers=headers)

    with running_teacher(answer) as teacher:
        teacher.seconds = 0.01
        with pytest.raises(CostCapError, match=r"MAX_COST_USD=0\.5 is reached"):
            label(teacher.url, list_texts(1000), LABEL__MAX_COST_USD=0.5, TEACHER__MAX_TOKENS=16)
        assert 400 <= len(teacher.bodies) <= 500


def test_a_cost_that_replies_tell_is_believed(label):
    with running_teacher(lambda text, call: tell_cost(0.001)) as teacher:
        _, figures = label(teacher.url, list_texts(10))
        assert figures["cost_usd"] == pytest.approx(0.01)


def test_a_cap_without_any_price_costs_one_call(label):
    with running_teacher(lambda text, call: text) as teacher:
        with pytest.raises(SettingsError, match="needs a price"):
            label(teacher.url, list_texts(100), LABEL__MAX_COST_USD=0.5)
        assert len(teacher.bodies) == 1


def test_a_higher_limit_asks_again_only_for_what_was_cut_off(label):
    def answer(text, call):
        is_cut = text.endswith("3") and teacher.bodies[call - 1]["max_tokens"] < 100
        return web.json_response(make_body("half", finish_reason="length")) if is_cut else text

    with running_teacher(answer) as teacher:
        rows, _ = label(teacher.url, list_texts(30), TEACHER__MAX_TOKENS=50)
        assert count(rows) == {"ok": 27, "length": 3}
        rows, _ = label(teacher.url, list_texts(30), TEACHER__MAX_TOKENS=50)
        assert len(teacher.bodies) == 30
        rows, _ = label(teacher.url, list_texts(30), TEACHER__MAX_TOKENS=200)
        assert count(rows) == {"ok": 30}
        assert len(teacher.bodies) == 33


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"id": "big", "expiration_date": "2026-12-31"}, "expiration_date 2026-12-31"),
        ({"id": "big", "deprecation": None}, None),
        ({"id": "other", "deprecation": "soon"}, None),
    ],
)
def test_a_model_that_ends_soon_is_told_of(entry, said):
    assert find_end(json.dumps({"data": [entry]}), "big") == said
    assert find_end("<html>", "big") is None


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_a_message_that_quotes_a_text_teaches_nothing(label, temperature):
    def answer(text, call):
        if text != "text 9":
            return text
        return refuse(400, "This is not allowed: raise the temperature slowly")

    with running_teacher(answer) as teacher:
        rows, figures = label(teacher.url, list_texts(60), TEACHER__TEMPERATURE=temperature)
        assert count(rows) == {"ok": 59, "bad_request": 1}
        assert "adaptations" not in figures


def test_a_text_about_money_stops_no_job(label):
    def answer(text, call):
        return refuse(400, "Flagged: payment required by Friday") if text == "text 9" else text

    with running_teacher(answer) as teacher:
        rows, _ = label(teacher.url, list_texts(60))
        assert count(rows)["ok"] == 59


def test_refusals_of_several_kinds_stop_a_job_too(label):
    def answer(text, call):
        return refuse(403 if call % 2 else 404, f"no: {text}")

    with running_teacher(answer) as teacher:
        with pytest.raises(DistillError):
            label(teacher.url, list_texts(300))
        assert len(teacher.bodies) <= 40


def test_a_long_wait_in_mid_run_ends_the_job(label):
    def answer(text, call):
        return text if call <= 50 else refuse(503, "busy", headers={"Retry-After": "3600"})

    with running_teacher(answer) as teacher:
        with pytest.raises(DistillError, match="asks to wait 3600 s"):
            label(teacher.url, list_texts(300), TEACHER__MAX_CONCURRENCY=8)
        assert len(teacher.bodies) < 70


def test_rows_that_break_the_server_fail_again_in_the_next_run(label):
    def answer(text, call):
        return refuse(500, "broken") if text.endswith("7") else text

    with running_teacher(answer) as teacher:
        for _ in range(2):
            rows, _ = label(teacher.url, list_texts(100), TEACHER__STARTUP_SECONDS=0.5)
            assert count(rows) == {"ok": 90, "server_error": 10}


def test_a_cap_holds_where_the_first_reply_is_free(label):
    with running_teacher(lambda t, c: tell_cost(0 if c == 1 else 0.01)) as teacher:
        values = {"LABEL__MAX_COST_USD": 2, "TEACHER__MAX_TOKENS": 16}
        with pytest.raises(CostCapError):
            label(teacher.url, list_texts(1000), **values)
        assert len(teacher.bodies) * 0.01 <= 2


def test_a_usage_without_numbers_counts_at_its_worst(label, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "big"\ninput = 1.0\noutput = 10.0\n', "utf-8")
    body = make_body("fine") | {"usage": {"prompt_tokens": None, "completion_tokens": None}}
    with (
        running_teacher(lambda text, call: web.json_response(body)) as teacher,
        pytest.raises(CostCapError),
    ):
        label(teacher.url, list_texts(300), TEACHER__PRICES=prices, LABEL__MAX_COST_USD=0.1)


def test_a_secret_is_known_in_every_form(label):
    def answer(text, call):
        if call == 1:
            return text
        raw = '{"error": {"message": "key canary\\/abc\\u002bdef0123, token sk-9canary"}}'
        return web.Response(status=401, text=raw, content_type="application/json")

    headers = {"Authorization": "Bearer sk-9canary", "accept": "application/json"}
    with running_teacher(answer) as teacher:
        values = {
            "TEACHER__API_KEY": "canary/abc+def0123",
            "TEACHER__EXTRA_HEADERS": json.dumps(headers),
        }
        with pytest.raises(TeacherRefusedError) as raised:
            label(teacher.url, list_texts(30), **values)
    assert "canary" not in str(raised.value)
