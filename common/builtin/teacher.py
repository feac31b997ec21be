"""The stand-in teacher: an OpenAI-compatible HTTP server on loopback that corrects by rules.

It answers the last user message (or the text before the last [/INST] of a completions prompt) with
`correction.correct`, alone or in batches. `python -m common.builtin.teacher --port 8001` serves
until its standard input ends; with `--reasoning` as a reasoning model does.
"""

import argparse
import asyncio
import json
import math
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from common.builtin.batches import Batches
from common.builtin.correction import correct
from common.errors import DistillError

MODEL = "stand-in"
_DEFAULT_REQUESTS_PER_MINUTE = 120_000
_LARGEST_UPLOAD = 256 << 20


class StandIn:
    """The server: its answer function, and the rest of this minute's quota."""

    def __init__(
        self,
        answer: Callable[[str], str] = correct,
        requests_per_minute: int = _DEFAULT_REQUESTS_PER_MINUTE,
        clock: Callable[[], float] = time.monotonic,
        is_reasoning: bool = False,
    ) -> None:
        """If it `is_reasoning`, it behaves as reasoning models do.

        It refuses `max_tokens` and a temperature, thinks before it answers, and tells its cost.
        """
        self._answer, self._limit, self._clock = answer, requests_per_minute, clock
        self._is_reasoning = is_reasoning
        self._left, self._window_start = requests_per_minute, clock()
        self.batches = Batches(self._answer_one, clock=clock)
        self.served = 0

    def make_app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=_LARGEST_UPLOAD)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        self.batches.add_routes(app.router)
        return app

    async def _list_models(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _complete(self, request: web.Request) -> web.Response:
        headers = self._take_quota()
        if "retry-after" in headers:
            status, content = _make_error(429, "rate_limit_exceeded", "the quota is used up")
            return web.json_response(content, status=status, headers=headers)
        try:
            body = json.loads(await request.read())
        except ValueError:
            body = None
        status, content = self._answer_one(body, request.path)
        return web.json_response(content, status=status, headers=headers)

    def _answer_one(self, body: Any, path: str) -> tuple[int, dict[str, Any]]:
        """The status and the response for one request."""
        is_chat = path.endswith("/chat/completions")
        try:
            prompt = body["messages"][-1]["content"] if is_chat else body["prompt"]
            if not isinstance(prompt, str):
                raise TypeError("the prompt is not a string")
            _read_limit(body)
            int(body.get("n") or 1)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            message = "messages, prompt or max_tokens is missing or of the wrong type"
            return _make_error(400, "invalid_request", message)
        if body.get("model") != MODEL:
            return _make_error(404, "model_not_found", f"no model {body.get('model')!r}")
        if self._is_reasoning and (refused := _find_refused(body)):
            return _make_error(400, "unsupported_parameter", _REFUSALS[refused], refused)
        text = prompt if is_chat else _last_instruction(prompt)
        self.served += 1
        return 200, make_completion(
            text, self._answer(text), body, is_chat, len(str(body)), self._is_reasoning
        )

    def _take_quota(self) -> dict[str, str]:
        now = self._clock()
        if now - self._window_start >= 60:
            self._left, self._window_start = self._limit, now
        reset = self._window_start + 60 - now
        allowed = self._left > 0
        self._left -= allowed
        headers = {
            "x-ratelimit-limit-requests": str(self._limit),
            "x-ratelimit-remaining-requests": str(self._left),
            "x-ratelimit-reset-requests": f"{reset:.3f}s",
        }
        return headers if allowed else headers | {"retry-after": str(math.ceil(reset))}


_REFUSALS = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support any value but 1 with this "
    "model. Only the default (1) value is supported.",
}
_THOUGHT = "The text is {characters} characters long. I correct what is wrong, and nothing else."


def _find_refused(body: dict[str, Any]) -> str | None:
    """The parameter that a reasoning model refuses first."""
    if "max_tokens" in body:
        return "max_tokens"
    return "temperature" if body.get("temperature", 1) != 1 else None


def _read_limit(body: dict[str, Any]) -> int:
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or 4096)


def make_completion(
    text: str,
    response: str,
    body: dict[str, Any],
    is_chat: bool,
    prompt_characters: int,
    is_reasoning: bool = False,
) -> dict[str, Any]:
    """A response body of the API; four characters count as a token."""
    thought = _THOUGHT.format(characters=len(text)) if is_reasoning else ""
    limit = 4 * _read_limit(body) - len(thought)
    finish_reason = "stop" if len(response) <= limit else "length"
    response, thought = response[: max(0, limit)], thought[: len(thought) + min(0, limit)]
    message = {"role": "assistant", "content": response}
    content = {"message": message | ({"reasoning_content": thought} if thought else {})}
    samples = int(body.get("n") or 1)
    prompt_tokens, reasoning_tokens = prompt_characters // 4, len(thought) // 4
    completion_tokens = samples * (len(response) // 4 + 1 + reasoning_tokens)
    return {
        "id": f"stand-in-{uuid.uuid4().hex[:12]}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {"index": index, "finish_reason": finish_reason}
            | (content if is_chat else {"text": response})
            for index in range(samples)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens_details": {"reasoning_tokens": samples * reasoning_tokens},
        }
        | ({"cost": 0.0} if is_reasoning else {}),
    }


def _last_instruction(prompt: str) -> str:
    before_end = prompt.rstrip().removesuffix("[/INST]")
    return before_end.split("[INST]")[-1].split("<</SYS>>")[-1].strip()


def _make_error(
    status: int, code: str, message: str, parameter: str | None = None
) -> tuple[int, dict[str, Any]]:
    error = {"message": message, "type": "stand_in_error", "code": code, "param": parameter}
    return status, {"error": error}


@contextmanager
def running_stand_in(host: str = "127.0.0.1") -> Iterator[str]:
    """Starts the server in a new process; gives its URL; stops it at the end.

    It also stops when this process dies, since its standard input ends then.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "common.builtin.teacher", "--host", host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in the terminal is for the job
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise DistillError("the stand-in teacher did not start")
        yield url
    finally:
        process.stdin.close()
        process.wait(timeout=10)
        process.stdout.close()


async def _serve(
    host: str, port: int, requests_per_minute: int, is_reasoning: bool, batch_seconds: float
) -> None:
    stand_in = StandIn(requests_per_minute=requests_per_minute, is_reasoning=is_reasoning)
    stand_in.batches.seconds = batch_seconds
    app = stand_in.make_app()
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    print(f"http://{host}:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: all interfaces")
    parser.add_argument("--port", type=int, default=0, help="0: any free port; it is printed")
    parser.add_argument("--requests-per-minute", type=int, default=_DEFAULT_REQUESTS_PER_MINUTE)
    parser.add_argument("--reasoning", action="store_true", help="behave as reasoning models do")
    parser.add_argument("--batch-seconds", type=float, default=0, help="time that a batch takes")
    given = parser.parse_args()
    limits = given.requests_per_minute, given.reasoning, given.batch_seconds
    asyncio.run(_serve(given.host, given.port, *limits))
