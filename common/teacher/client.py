"""The teacher's client: sends a request, with throttling, backoff and retries."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai

from common.errors import DistillError, InputError
from common.prices.prices import Price
from common.quota.leases import Call, Leases, Outcome
from common.quota.protocol import Headers, Totals
from common.settings import TeacherSettings
from common.teacher.rate_limits import parse_retry_after, read_headers
from common.teacher.replies import Answer, Reply, read_answer
from common.teacher.requests import bound_prompt_tokens, count_characters, require_model
from common.teacher.statuses import Action, find_rule, raise_if_fatal, read_provider_message

_BACKOFF_SECONDS = (0.5, 30.0)
_MAX_WAIT_SECONDS = 900.0
"""A row that has waited for this long in all fails."""
_CHECK_ATTEMPTS = 3


class Teacher:
    """One client of the API, with one connection pool. Use it in one event loop."""

    def __init__(
        self,
        settings: TeacherSettings,
        url: str,
        leases: Leases,
        price: Price | None = None,
        keep: Callable[[Reply], Awaitable[None]] | None = None,
    ) -> None:
        """Connects to the API at `url`; `leases` decides when a call may start.

        `keep` makes each reply that may be paid for durable before it is parsed, including timeouts
        and lost connections. A call is in flight until `keep` returns: a crash loses at most
        `teacher.max_concurrency` replies.
        """
        require_model(settings)
        self._settings, self._leases, self._keep = settings, leases, keep
        self._path = "/chat/completions" if settings.endpoint == "chat" else "/completions"
        self._price, slots = price, settings.max_concurrency
        # The package's transport and headers, without its request options, retries and models,
        # which take more CPU time than everything else (tests/benchmarks/label.py).
        self._http = openai.DefaultAioHttpClient(
            timeout=None,  # _send limits the whole call
            limits=httpx2.Limits(max_connections=slots, max_keepalive_connections=slots),
        )
        key = settings.api_key.get_secret_value() or "none"
        client = openai.AsyncOpenAI(base_url=url, api_key=key, http_client=self._http)
        headers = client.default_headers | client.auth_headers
        self._headers = httpx2.Headers({n: v for n, v in headers.items() if isinstance(v, str)})
        self._url = url.rstrip("/")

    async def close(self) -> None:
        """Closes the connections."""
        await self._leases.close()
        await self._http.aclose()

    async def check(self) -> None:
        """Checks without a paid call that the API answers and accepts the key.

        Raises:
            InputError: nothing answers at the URL, or not an OpenAI API.
            TeacherRefusedError: the API refuses the key.
        """
        for attempt in range(_CHECK_ATTEMPTS):
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    response = await self._http.get(f"{self._url}/models", headers=self._headers)
                status, text = response.status_code, response.text
                action = find_rule(status, text).action
                if not response.is_error and not _is_json(text):
                    action = Action.STOP_URL
                if not response.is_error or action is Action.STOP_KEY:
                    raise_if_fatal(action, self._settings, "GET /models", status, text)
                return  # any other error: the API does not list its models
            except (httpx2.HTTPError, TimeoutError) as error:
                reason = _describe(error)
            if attempt < _CHECK_ATTEMPTS - 1:
                await asyncio.sleep(attempt + 0.5)
        is_local = "//localhost" in self._settings.base_url or "//127." in self._settings.base_url
        is_container = Path("/.dockerenv").exists()
        hint = "; localhost is this container itself" if is_local and is_container else ""
        raise InputError(
            f"DISTILL_TEACHER__BASE_URL={self._settings.base_url!r}: nothing answers there "
            f"({reason}); correct the URL, or start the server{hint}"
        )

    async def ask(self, body: dict[str, Any], key: str) -> Reply:
        """Sends a request, and retries it as the settings allow.

        Raises:
            TeacherRefusedError, InputError: no request can succeed.
            DistillError: the job stops.
        """
        max_prompt_tokens, worst_usd = bound_prompt_tokens(body), 0.0
        if self._price:
            worst_usd = self._price.worst_cost(max_prompt_tokens, self._settings.max_tokens)
        size, content = count_characters(body), json.dumps(body).encode()
        attempts = calls = 0
        first_sent_at = 0.0
        while True:
            call = await self._leases.acquire(size, worst_usd, is_retry=calls > 0)
            calls += 1
            first_sent_at = first_sent_at or call.sent_at
            outcome = Outcome(Totals(calls=1, retries=int(calls > 1)), call.tokens)
            try:
                response = await self._send(content)
                now = asyncio.get_running_loop().time()
                outcome.totals.call_seconds, waited = now - call.sent_at, now - first_sent_at
                status, text = response.status, response.text
                reply = Reply(key, status, text, attempts + 1, waited, max_prompt_tokens)
                if response.may_be_paid and self._keep is not None:
                    await self._keep(reply)
                answer = read_answer(reply)
                self._count(outcome, call, answer, response)
            except DistillError as error:
                self._leases.fail(error)
                raise
            finally:
                self._leases.settle(call, outcome)
            action = response.action if answer.error != "bad_response" else Action.RETRY
            if action in (Action.ANSWER, Action.FAIL):
                return reply
            if action is not Action.THROTTLE:
                attempts += 1
                if attempts >= self._settings.max_attempts:
                    return reply
                wait = response.retry_after
                await asyncio.sleep(_jitter(attempts) if wait is None else wait)
            if waited > _MAX_WAIT_SECONDS:
                return reply

    def _count(self, outcome: Outcome, call: Call, answer: Answer, response: "_Response") -> None:
        """Fills in a call's outcome for the quota."""
        totals, outcome.headers = outcome.totals, response.headers
        prompt, completion = answer.prompt_tokens, answer.completion_tokens
        if response.status == 200:
            totals.answered, totals.prompt_tokens, totals.completion_tokens = 1, prompt, completion
        elif not response.may_be_paid:
            outcome.used_tokens = 0.0  # refused, or never sent
        if prompt:
            outcome.used_tokens = prompt + completion
            if self._price:
                totals.cost_usd = self._price.cost(prompt, completion, answer.cached_tokens)
        elif response.may_be_paid:
            totals.cost_usd = call.usd
        if response.action is Action.THROTTLE:
            totals.throttled = 1
            outcome.is_throttled, outcome.retry_after_seconds = True, response.retry_after

    async def _send(self, content: bytes) -> "_Response":
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                response = await self._http.post(
                    self._url + self._path, content=content, headers=self._headers
                )
        except TimeoutError:
            return _Response(0, f"timeout: no answer in {self._settings.timeout_seconds} s")
        except httpx2.HTTPError as error:
            was_sent = not isinstance(error.__cause__, aiohttp.ClientConnectorError)
            return _Response(0, f"connection: {_describe(error)}", was_sent=was_sent)
        status = response.status_code
        text = response.content.decode("utf-8", "replace")  # JSON is UTF-8
        headers = read_headers(response.headers.raw)
        action = find_rule(status, text).action
        if action is Action.ANSWER:
            return _Response(status, text, action, headers)
        raise_if_fatal(action, self._settings, self._path, status, text)
        wait = parse_retry_after(response.headers.get("retry-after"))
        if action is Action.THROTTLE and wait is not None and wait > _MAX_WAIT_SECONDS:
            raise DistillError(
                f"the teacher at {self._settings.base_url} asks to wait {wait:.0f} s ({status} "
                f"{read_provider_message(text)}); run again then"
            )
        return _Response(status, text, action, headers, wait)


@dataclass(slots=True)
class _Response:
    """A response, or the lack of one (status 0). `retry_after` is in seconds."""

    status: int
    text: str
    action: Action = Action.RETRY
    headers: Headers | None = None
    retry_after: float | None = None
    was_sent: bool = True

    @property
    def may_be_paid(self) -> bool:
        """Whether the provider may charge for it; a timeout may have been answered."""
        return self.was_sent and self.status in (0, 200)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _describe(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


def _jitter(attempts: int) -> float:
    """Seconds of exponential backoff with full jitter.

    Source: M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """
    base, longest = _BACKOFF_SECONDS
    return random.uniform(0, min(longest, base * 2**attempts))
