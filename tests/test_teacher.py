import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from common.errors import SettingsError, TeacherRefusedError
from common.prices.prices import find_price
from common.quota.leases import Leases, reach_quota
from common.quota.protocol import Headers
from common.quota.quota import Quota
from common.sections import TeacherSettings
from common.tasks.task import Task
from common.teacher import client as teacher_module
from common.teacher.client import Teacher
from common.teacher.rate_limits import parse_reset, parse_retry_after, parse_seconds, read_headers
from common.teacher.replies import Reply, read_answer
from common.teacher.requests import bound_prompt_tokens, make_key, make_request
from common.teacher.usage import Usage
from support.fake_teacher import make_body, refuse, running_teacher

TASK = Task(name="echo")


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch):
    monkeypatch.setattr(teacher_module, "_BACKOFF_SECONDS", (0.001, 0.01))


def make_settings(**values) -> TeacherSettings:
    return TeacherSettings(**{"base_url": "http://unused/v1", "model": "big", **values})


def make_leases(quota: Quota | None = None, **limits) -> Leases:
    return Leases(reach_quota(quota or Quota(**limits)))


def ask(answer, texts=("hello",), quota=None, **values) -> tuple[list[Reply], list[dict]]:
    """Asks for every text at once; gives the replies and the bodies that the server saw."""
    settings = make_settings(**values)

    async def run(url: str) -> list[Reply]:
        limits = {"max_concurrency": settings.max_concurrency}
        leases = make_leases(quota, **limits)
        teacher = Teacher(settings, url, leases, find_price(settings))
        bodies = [make_request(settings, TASK, text) for text in texts]
        try:
            calls = [teacher.ask(body, [make_key(settings, body)]) for body in bodies]
            return [reply for (reply,) in await asyncio.gather(*calls)]
        finally:
            await teacher.close()

    with running_teacher(answer) as server:
        return asyncio.run(run(server.url)), server.bodies


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_reply_holds_the_answer_and_its_usage(endpoint):
    (reply,), _ = ask(lambda text, call: f"<{text.strip()}>", endpoint=endpoint)
    answer = read_answer(reply)
    assert answer.text == "<hello>"
    assert (answer.error, answer.finish_reason) == (None, "stop")
    assert (answer.usage, reply.attempts) == (Usage(10, 0, 5), 1)


@pytest.mark.parametrize(
    "fault",
    [
        lambda: refuse(500, "broken"),
        lambda: refuse(503, "overloaded"),
        lambda: refuse(408, "too slow"),
        lambda: refuse(409, "conflict"),
        lambda: web.Response(text='{"choices": [{"mess', content_type="application/json"),
        lambda: web.json_response({"choices": []}),
        ConnectionResetError,
    ],
)
def test_passing_trouble_is_tried_again(fault: Callable[[], object]):
    (reply,), bodies = ask(lambda text, call: "fine" if call == 3 else fault())
    assert read_answer(reply).text == "fine"
    assert len(bodies) == 3


def test_a_call_that_hangs_is_given_up_and_tried_again():
    (reply,), bodies = ask(
        lambda text, call: "fine" if call == 2 else TimeoutError(), timeout_seconds=0.3
    )
    assert (read_answer(reply).text, len(bodies)) == ("fine", 2)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (lambda: refuse(500, "broken"), "server_error"),
        (ConnectionResetError, "connection"),
        (TimeoutError, "timeout"),
        (lambda: web.Response(text="{"), "bad_response"),
    ],
)
def test_attempts_are_bounded(fault, error):
    def answer(text, call):
        return text if text == "good" else fault()

    limits = {"max_attempts": 3, "timeout_seconds": 0.3}
    (_, reply), bodies = ask(answer, ["good", "bad"], **limits)
    assert len(bodies) == 1 + 3
    assert read_answer(reply).error == error


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("content_policy_violation", "content_policy"),
        ("context_length_exceeded", "context_length"),
        ("something", "bad_request"),
    ],
)
def test_a_refusal_of_one_row_is_final_for_that_row_only(code, error):
    def answer(text, call):
        return refuse(400, "no", code) if text == "bad" else text

    (bad, good), bodies = ask(answer, ["bad", "good"])
    assert read_answer(bad).error == error
    assert read_answer(good).text == "good"
    assert len(bodies) == 2


def test_a_429_pauses_everyone_and_uses_up_no_attempt():
    def answer(text, call):
        return refuse(429, "slow down", headers={"Retry-After": "0.5"}) if call <= 3 else text

    started = time.monotonic()
    replies, bodies = ask(answer, ["a", "b", "c", "d"], max_attempts=1, max_concurrency=1)
    assert [read_answer(reply).text for reply in replies] == ["a", "b", "c", "d"]
    assert {reply.attempts for reply in replies} == {1}
    assert len(bodies) == 7
    assert time.monotonic() - started > 1.5


def test_a_teacher_without_a_model_name_is_refused():
    with pytest.raises(SettingsError, match="DISTILL_TEACHER__MODEL"):
        Teacher(make_settings(model=""), "http://unused/v1", make_leases())


def test_calls_in_flight_stay_below_the_limit():
    settings = make_settings(max_concurrency=3)

    async def run(url):
        teacher = Teacher(settings, url, make_leases(max_concurrency=settings.max_concurrency))
        body = make_request(settings, TASK, "x")
        try:
            await asyncio.gather(*(teacher.ask(body, ["key"]) for _ in range(12)))
        finally:
            await teacher.close()

    with running_teacher(lambda text, call: text) as server:
        server.seconds = 0.05
        asyncio.run(run(server.url))
        assert server.most_in_flight == 3


def test_keys_tell_requests_apart():
    def key(text="a", sample=0, **values):
        settings = make_settings(**values)
        return make_key(settings, make_request(settings, TASK, text), sample)

    keys = [
        key(),
        key("b"),
        key(sample=1),
        key(model="other"),
        key(temperature=1.0),
        key(base_url="http://elsewhere/v1"),
        key(endpoint="completions"),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key(max_concurrency=1, api_key="secret")


def test_the_time_in_the_queue_is_not_the_teachers():
    def slow(text, call):
        time.sleep(0.1)
        return text

    replies, _ = ask(slow, ["a"] * 6, max_concurrency=1)
    assert max(reply.seconds for reply in replies) < 0.4


def test_retry_after_is_a_duration_or_a_moment():
    def near(value, seconds):
        return seconds - 2 < parse_retry_after(value) <= seconds

    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert parse_retry_after("1.5") == 1.5
    assert parse_retry_after("2m") == 120
    assert near(format_datetime(soon, usegmt=True), 30)
    assert near(soon.isoformat(), 30)
    assert near(str(time.time() + 40), 40)
    assert near(str(1000 * (time.time() + 50)), 50)
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert parse_retry_after("Fri, 01 Jan 2100 00:00:00 GMT") > 1e9
    assert parse_retry_after("inf") is None
    assert parse_retry_after("soon") is None
    assert parse_retry_after(None) is None


def test_a_reset_is_a_duration_or_a_moment_and_no_absurd_one():
    def near(value, seconds):
        return seconds - 2 < parse_reset(value) <= seconds

    assert parse_reset("59.5") == 59.5
    assert parse_reset("59500") is None  # milliseconds, or a day: nobody knows
    assert parse_reset("23h") == 82_800
    assert parse_reset("100d") is None
    assert near(str(int(time.time()) + 40), 40)
    assert near(str(int(1000 * time.time()) + 40_000), 40)
    assert near((datetime.now(UTC) + timedelta(seconds=30)).isoformat(), 30)
    assert parse_reset(str(time.time() + 1e8)) is None
    assert parse_reset("soon") is None
    assert parse_reset("9" * 400) is parse_reset("9" * 400 + "s") is None
    assert parse_seconds("9" * 400 + "s") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1.5", 1.5),
        ("20ms", 0.02),
        ("1s", 1),
        ("1.25s", 1.25),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("5 s", None),
        (None, None),
    ],
)
def test_durations_in_headers(text, seconds):
    assert parse_seconds(text) == (seconds if seconds is None else pytest.approx(seconds))


def test_rate_limit_headers_are_read():
    raw = [
        (b"Content-Type", b"application/json"),
        (b"X-RateLimit-Limit-Requests", b"1200"),
        (b"x-ratelimit-remaining-requests", b"1199"),
        (b"x-ratelimit-reset-tokens", b"6m0s"),
        (b"x-ratelimit-remaining-tokens", b"lots"),
    ]
    expected = Headers(requests_limit=1200, requests_remaining=1199, tokens_reset_seconds=360)
    assert read_headers(raw) == expected
    assert read_headers(raw[:1]) is None


def test_the_wait_of_a_row_is_bounded():
    def answer(text, call):
        return refuse(429, "slow down", headers={"Retry-After": "0.2"})

    (reply,), bodies = ask(answer, max_attempts=1, outage_seconds=0.5)
    assert read_answer(reply).error == "rate_limit"
    assert 2 <= len(bodies) <= 5


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.toml"
    text = '[[price]]\nmodel = "big"\ninput = 1.0\noutput = 10.0\ncached_input = 0.5\n'
    path.write_text(text, "utf-8")
    return str(path)


def test_the_cost_is_that_of_the_usage(prices):
    body = make_body("fine")
    body["usage"] |= {"prompt_tokens_details": {"cached_tokens": 4}}
    quota = Quota()
    ask(lambda text, call: web.json_response(body), ["a", "b"], quota, prices=prices)
    totals = quota.snapshot().totals
    assert (totals.prompt_tokens, totals.completion_tokens) == (20, 10)
    assert totals.cost_usd == pytest.approx(2 * (6 * 1.0 + 4 * 0.5 + 5 * 10.0) / 1e6)


def test_a_call_without_an_answer_may_have_cost_its_worst(prices):
    quota = Quota()
    values = {"prices": prices, "timeout_seconds": 0.2, "max_attempts": 1, "max_tokens": 100}
    ask(lambda text, call: TimeoutError(), ["a"], quota, **values)
    assert quota.snapshot().totals.cost_usd > 100 * 10.0 / 1e6


def keep_calls(answer, **values):
    """The replies that are kept of one call."""
    kept = []

    async def keep(reply):
        kept.append(reply)

    async def run(url):
        settings = make_settings(**values)
        teacher = Teacher(settings, url, make_leases(), keep=keep)
        try:
            await teacher.ask(make_request(settings, TASK, "a"), ["key"])
        finally:
            await teacher.close()

    with running_teacher(answer) as server:
        asyncio.run(run(server.url))
    return kept


@pytest.mark.parametrize(
    "fault", [TimeoutError(), ConnectionResetError(), web.Response(text='{"choices": [')]
)
def test_what_may_have_to_be_paid_is_kept_with_the_most_that_it_may_have_cost(fault):
    """Also that of a call without an answer, so that the next job's cap knows of it."""
    (reply,) = keep_calls(lambda text, call: fault, timeout_seconds=0.2, max_attempts=1)
    assert reply.http_status in (0, 200)
    body = make_request(make_settings(), TASK, "a")
    assert reply.most_prompt_tokens == bound_prompt_tokens(body)


def test_a_reply_is_durable_before_it_is_parsed(monkeypatch):
    events = []

    def read(reply):
        events.append("parse")
        return read_answer(reply)

    async def keep(reply):
        events.append("keep")

    async def run(url):
        settings = make_settings()
        teacher = Teacher(settings, url, make_leases(), keep=keep)
        await teacher.ask(make_request(settings, TASK, "a"), ["key"])
        await teacher.close()

    monkeypatch.setattr("common.teacher.client.read_answer", read)
    with running_teacher(lambda text, call: "fine") as server:
        asyncio.run(run(server.url))
    assert events == ["keep", "parse"]


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_refusal_costs_nothing_and_is_not_kept(status):
    calls = []

    def answer(text, call):
        calls.append(text)
        return "fine" if len(calls) > 1 else refuse(status, "no", headers={"Retry-After": "0.1"})

    kept = keep_calls(answer)
    assert [reply.http_status for reply in kept] == ([] if status == 400 else [200])


def test_a_call_that_never_reached_the_teacher_costs_nothing(prices):
    quota = Quota()
    with running_teacher(lambda text, call: text) as server:
        url = server.url

    async def run():
        settings = make_settings(prices=prices, max_attempts=1)
        teacher = Teacher(settings, url, make_leases(quota), find_price(settings))
        (reply,) = await teacher.ask(make_request(settings, TASK, "a"), ["key"])
        await teacher.close()
        return reply

    assert asyncio.run(run()).body.startswith("connection: ")
    assert quota.snapshot().totals.cost_usd == 0


def test_a_refusal_lets_calls_in_flight_end_and_starts_no_more():
    kept = []

    def answer(text, call):
        return refuse(401, "no") if text == "bad" else text

    async def run(server):
        settings = make_settings()

        async def keep(reply):
            kept.append(reply)

        teacher = Teacher(settings, server.url, make_leases(max_concurrency=4), keep=keep)
        texts = ["bad", "a", "b", "c", *"defghijkl"]
        bodies = [make_request(settings, TASK, text) for text in texts]
        calls = (teacher.ask(body, [make_key(settings, body)]) for body in bodies)
        try:
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await teacher.close()

    with running_teacher(answer) as server:
        server.seconds = 0.2
        outcomes = asyncio.run(run(server))
        assert len(server.bodies) <= 7
    refused = [outcome for outcome in outcomes if isinstance(outcome, TeacherRefusedError)]
    assert len(refused) + len(kept) == len(outcomes)
    assert len(kept) >= 3
