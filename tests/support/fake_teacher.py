"""A real HTTP server on loopback whose answers a test decides."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Result = str | dict[str, Any] | web.StreamResponse | Exception
Answer = Callable[[str, int], Result]


class FakeTeacher:
    """`answer(text, call_number)` gives a text, a body, a whole response, or an exception.

    ConnectionResetError breaks the connection; TimeoutError never answers.

    Attributes:
        bodies: of all calls, in the order of `began`, when they came.
        answered: when and to which text each text or body was given: what is paid for.
        in_flight: calls that have not got their answer yet.
        seconds: how long a call takes, or a function of its text that says so.
        watch: is given every request.
        models: the names that it lists.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.began: list[float] = []
        self.answered: list[tuple[float, str]] = []
        self.url = ""
        self.in_flight = self.most_in_flight = 0
        self.seconds: float | Callable[[str], float] = 0.0
        self.watch: Callable[[web.Request], None] = lambda request: None
        self.models = ["big"]

    def forget(self) -> None:
        """Forgets all calls, for another job."""
        self.bodies.clear()
        self.began.clear()
        self.answered.clear()
        self.most_in_flight = 0

    @property
    def paid(self) -> Counter[str]:
        """How often each text was answered."""
        return Counter(text for _, text in self.answered)

    @property
    def paid_again(self) -> int:
        """Answers that were not the first to their text."""
        return len(self.answered) - len(self.paid)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.watch(request)
        body = await request.json()
        self.bodies.append(body)
        self.began.append(time.monotonic())
        number = len(self.bodies)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        await asyncio.sleep(self.seconds(text) if callable(self.seconds) else self.seconds)
        self.in_flight -= 1
        result = self.answer(text, number)
        if isinstance(result, str):
            result = make_body(result, chat="messages" in body)
        if isinstance(result, dict):
            self.answered.append((time.monotonic(), text))
            return web.json_response(result)
        is_reset = isinstance(result, ConnectionResetError)
        if is_reset and request.transport is not None:  # the client is still there
            request.transport.abort()
        if isinstance(result, TimeoutError):
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.1)
        if isinstance(result, Exception):
            return web.Response(status=500)
        return result


def make_body(text: str, chat: bool = True, finish_reason: str = "stop") -> dict[str, Any]:
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "finish_reason": finish_reason, **content}
    return {"choices": [choice], "usage": usage, "model": "big"}


def refuse(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    error = {"error": {"message": message, "code": code}}
    return web.Response(
        status=status, text=json.dumps(error), headers=headers, content_type="application/json"
    )


@contextmanager
def running_teacher(answer: Answer, port: int = 0) -> Iterator[FakeTeacher]:
    teacher = FakeTeacher(answer)
    loop = asyncio.new_event_loop()

    async def models(request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": name} for name in teacher.models]}
        )

    async def forbid(request: web.Request) -> web.Response:
        return web.Response(status=403, text="<html>forbidden</html>", content_type="text/html")

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", teacher.complete)
        app.router.add_post("/v1/completions", teacher.complete)
        app.router.add_get("/v1/models", models)
        app.router.add_get("/unlisted/v1/models", forbid)
        app.router.add_post("/unlisted/v1/chat/completions", teacher.complete)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    runner = loop.run_until_complete(start())
    teacher.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield teacher
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
