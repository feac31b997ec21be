"""A teacher that takes half a second for each answer, and remembers when it was called.

Runs inside the project's image; GET /calls tells the moments of all calls, as seconds, and
GET /callers their addresses.
"""

import asyncio
import time

from aiohttp import web

CALLS: list[float] = []
CALLERS: list[str | None] = []


async def complete(request: web.Request) -> web.Response:
    body = await request.json()
    CALLS.append(time.time())
    CALLERS.append(request.remote)
    await asyncio.sleep(0.5)
    message = {"role": "assistant", "content": body["messages"][-1]["content"]}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return web.json_response({"choices": [choice], "usage": usage})


async def list_models(request: web.Request) -> web.Response:
    return web.json_response({"data": []})


async def list_calls(request: web.Request) -> web.Response:
    return web.json_response(CALLS)


async def list_callers(request: web.Request) -> web.Response:
    return web.json_response(CALLERS)


app = web.Application()
app.add_routes(
    [
        web.post("/v1/chat/completions", complete),
        web.get("/v1/models", list_models),
        web.get("/calls", list_calls),
        web.get("/callers", list_callers),
    ]
)
web.run_app(app, port=8000, print=None)
