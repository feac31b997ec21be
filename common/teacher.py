"""Calls the teacher: one text in, one reply out, whatever happens on the way.

What a response means for the job:

* 200 with a choice: a reply. 408, 409, 5xx, timeouts, broken connections, broken JSON: tried again
  with full jitter, at most `teacher.max_attempts` times; then the row has failed.
* 429: everyone waits as long as `Retry-After` says. It never uses up an attempt.
* Any other 4xx is about one row (content policy, context length): that row has failed.
* 401, 402, 403, an unknown model, exhausted credit: the job stops, see `TeacherRefusedError`.
"""

import asyncio
import email.utils
import hashlib
import json
import math
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai

from common.errors import InputError, SettingsError, TeacherRefusedError
from common.quota import Quota
from common.replies import Reply, read_answer, read_provider_message
from common.settings import TeacherSettings
from common.tasks import Task

_BACKOFF_SECONDS = (0.5, 30.0)
_MAX_WAIT_SECONDS = 900.0
"""A row that was told to wait for this long in all has failed."""
_CHECK_ATTEMPTS = 3
_UNKNOWN_MODEL = re.compile(
    r"model\b.*(not found|not exist|unknown)|(unknown|invalid|not a valid) model", re.IGNORECASE
)
"""How servers that answer 400 say that there is no such model."""
_CHARACTERS_PER_TOKEN = 3.5
"""A rough guess for the token quota, corrected by every response's usage."""


def make_request(settings: TeacherSettings, task: Task, text: str) -> dict[str, Any]:
    """The body of the request for one text, as both kinds of endpoint want it."""
    body: dict[str, Any] = {
        "model": settings.model,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
    }
    if settings.endpoint == "chat":
        return body | {"messages": task.make_messages(text)}
    return body | {
        "prompt": task.make_completion_prompt(text),
        "stop": task.teacher.completion.stop,
    }


def make_key(settings: TeacherSettings, body: dict[str, Any], sample: int = 0) -> str:
    """The identity of a response: endpoint, canonical request (with its model), sample index."""
    identity = [settings.base_url, settings.endpoint, body, sample]
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Teacher:
    """One client of the API, with one connection pool. Use it in one event loop."""

    def __init__(
        self,
        settings: TeacherSettings,
        url: str,
        share: float = 1.0,
        keep: Callable[[Reply], Awaitable[None]] | None = None,
    ) -> None:
        """`url` is where the API really is; `share` is this client's part of the job's limits.

        `keep` makes a reply durable. A call counts as in flight until it returns, so that a crash
        costs no more replies than `teacher.max_concurrency`.
        """
        if not settings.model:
            raise SettingsError(
                "DISTILL_TEACHER__MODEL is not set: name the model as the API at "
                f"{settings.base_url} knows it"
            )
        self._settings, self._keep = settings, keep
        self._path = "/chat/completions" if settings.endpoint == "chat" else "/completions"
        slots = max(1, int(settings.max_concurrency * share))
        self._slots = asyncio.Semaphore(slots)
        self._quota = Quota(settings.requests_per_minute, settings.tokens_per_minute, share)
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=settings.api_key.get_secret_value() or "none",
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(
                timeout=None,  # the limit is on the whole call, see _send
                limits=httpx2.Limits(max_connections=slots, max_keepalive_connections=slots),
            ),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def check(self) -> None:
        """Makes sure, without a paid call, that there is an API at the URL that lets us in.

        Raises:
            InputError: nothing answers there.
            TeacherRefusedError: it refuses the key.
        """
        for attempt in range(_CHECK_ATTEMPTS):
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    response = await self._client.get("/models", cast_to=httpx2.Response)
                if not _is_json(response.text):
                    raise InputError(self._explain_url("GET /models", 200, response.text))
                return
            except openai.APIStatusError as error:
                self._stop_if_refused(error)
                return  # an API without a list of models
            except (openai.APIConnectionError, httpx2.HTTPError, TimeoutError) as error:
                reason = _describe(error)
            if attempt < _CHECK_ATTEMPTS - 1:
                await asyncio.sleep(attempt + 0.5)
        raise InputError(
            f"DISTILL_TEACHER__BASE_URL={self._settings.base_url!r}: nothing answers there "
            f"({reason}); correct the URL, or start the server"
        )

    async def ask(self, body: dict[str, Any], key: str) -> Reply:
        """Sends a request, as often as it takes and the settings allow.

        Raises:
            TeacherRefusedError, InputError: no request will ever succeed.
        """
        started: float | None = None
        estimate = len(json.dumps(body)) / _CHARACTERS_PER_TOKEN
        attempts = 0
        while True:
            async with self._slots:
                await self._quota.acquire(estimate)
                started = started or time.monotonic()  # not before: rows queue for a slot
                reply, retry_after = await self._send(body, key, attempts + 1, started)
                if reply.http_status == 200 and self._keep is not None:
                    await self._keep(reply)
            if reply.http_status == 200:
                answer = read_answer(reply)
                self._quota.settle(estimate, answer.prompt_tokens + answer.completion_tokens)
                if answer.error != "bad_response":
                    return reply
            elif reply.is_final:
                return reply
            if reply.http_status == 429:
                self._quota.pause(retry_after if retry_after is not None else _jitter(attempts))
            else:
                attempts += 1
                if attempts >= self._settings.max_attempts:
                    return reply
                await asyncio.sleep(_jitter(attempts) if retry_after is None else retry_after)
            if time.monotonic() - started > _MAX_WAIT_SECONDS:
                return reply

    async def _send(
        self, body: dict[str, Any], key: str, attempt: int, started: float
    ) -> tuple[Reply, float | None]:
        """One request: the reply, and the seconds that the server asks to wait, if it does."""
        retry_after = None
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                response = await self._client.post(self._path, cast_to=httpx2.Response, body=body)
            status, text = response.status_code, response.text
        except openai.APIStatusError as error:
            self._stop_if_refused(error)
            status, text = error.status_code, error.response.text
            retry_after = parse_retry_after(error.response.headers.get("retry-after"))
        except TimeoutError:
            status, text = 0, f"timeout: no answer in {self._settings.timeout_seconds} s"
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            status, text = 0, f"connection: {_describe(error)}"
        return Reply(key, status, text, attempt, time.monotonic() - started), retry_after

    def _stop_if_refused(self, error: openai.APIStatusError) -> None:
        message = read_provider_message(error.response.text)
        place = f"{self._settings.base_url} (model {self._settings.model!r})"
        no_credit = error.code in ("insufficient_quota", "billing_hard_limit_reached")
        if error.status_code in (401, 402, 403) or (error.status_code == 429 and no_credit):
            raise TeacherRefusedError(
                f"the teacher at {place} refuses: {error.status_code} {message}; check "
                "DISTILL_TEACHER__API_KEY, the key's permissions and the account's credit"
            )
        is_model = error.code == "model_not_found" or "model" in message.lower()
        if self._is_listing(error):
            return
        if error.status_code in (404, 405, 501) and not is_model:
            raise InputError(self._explain_url(self._path, error.status_code, message))
        is_unknown = error.code == "model_not_found" or _UNKNOWN_MODEL.search(message)
        if error.status_code == 404 or (error.status_code == 400 and is_unknown):
            raise TeacherRefusedError(
                f"the teacher at {place} refuses: {error.status_code} {message}; check "
                "DISTILL_TEACHER__MODEL"
            )

    def _explain_url(self, request: str, status: int, message: str) -> str:
        return (
            f"DISTILL_TEACHER__BASE_URL={self._settings.base_url!r}: what answers there speaks no "
            f"OpenAI API ({request}: {status} {read_provider_message(message)}); such a URL mostly "
            "ends in /v1"
        )

    @staticmethod
    def _is_listing(error: openai.APIStatusError) -> bool:
        return error.response.request.method == "GET"


def parse_retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header: a number, or an HTTP date; None if it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, seconds), _MAX_WAIT_SECONDS) if math.isfinite(seconds) else None


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
    """Full jitter: uniform over an exponentially growing span, in seconds.

    Source: M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """
    base, longest = _BACKOFF_SECONDS
    return random.uniform(0, min(longest, base * 2**attempts))
