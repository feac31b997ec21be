"""The bare openai client with its aiohttp transport: what can be reached without Ray or a journal.

`python -m tests.benchmarks.clients URL REQUESTS 256 create` sends each line of REQUESTS, a JSON
body, with 256 calls in flight. The last word says how the client is used, see `CALLS`.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai

Call = Callable[[openai.AsyncOpenAI, dict[str, Any]], Awaitable[str]]


async def create(client: openai.AsyncOpenAI, body: dict[str, Any]) -> str:
    """As the package's documentation shows it."""
    return (await client.chat.completions.create(**body)).choices[0].message.content or ""


async def raw(client: openai.AsyncOpenAI, body: dict[str, Any]) -> str:
    """The same without making an object of the response."""
    return (await client.chat.completions.with_raw_response.create(**body)).text


async def post(client: openai.AsyncOpenAI, body: dict[str, Any]) -> str:
    """The client's low-level method, which leaves the request's types alone."""
    return (await client.post("/chat/completions", cast_to=httpx2.Response, body=body)).text


CALLS: dict[str, Call] = {"create": create, "raw": raw, "post": post}


async def send_all(url: str, bodies: list[dict[str, Any]], concurrency: int, call: Call) -> None:
    """Sends every body, `concurrency` at a time."""
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    http = openai.DefaultAioHttpClient(timeout=None, limits=limits)
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", http_client=http, max_retries=0
    ) as client:

        async def work(waiting: Iterator[dict[str, Any]]) -> None:
            for body in waiting:
                assert await call(client, body)

        waiting = iter(bodies)
        await asyncio.gather(*(work(waiting) for _ in range(concurrency)))


def main() -> None:
    url, path, concurrency, name = sys.argv[1:]
    bodies = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    asyncio.run(send_all(url, bodies, int(concurrency), CALLS[name]))


if __name__ == "__main__":
    main()
