"""The teacher of `make run-real`: people, behind the API of language models.

It serves on loopback until its standard input ends. Each answer to a sentence is another person's,
so that it errs as people do; asked for log-probabilities, it tells the shares of all ten.
"""

import argparse
import asyncio
import math
import sys
from collections import Counter
from typing import Any

from aiohttp import web

from common.builtin.teacher import make_completion
from tests.real.reviews import load_reviews

MODEL = "people"


class People:
    """The server; `answers` are those to each text."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self._answers = answers
        self._asked: Counter[str] = Counter()

    def make_app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application()
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_post("/v1/chat/completions", self._complete)
        return app

    async def _list_models(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        text = body["messages"][-1]["content"].strip()
        if text not in self._answers:
            error = {"message": "nobody has rated this sentence", "code": "not_found"}
            return web.json_response({"error": error}, status=400)
        answers = self._answers[text]
        completion = make_completion(text, answers[0], body, True, len(str(body)))
        for choice in completion["choices"]:
            answer = answers[self._asked[text] % len(answers)]
            self._asked[text] += 1
            choice["message"]["content"] = answer
            if body.get("logprobs"):
                choice["logprobs"] = _describe(answer, answers)
        return web.json_response(completion)


def _describe(answer: str, answers: list[str]) -> dict[str, Any]:
    """The shares of all answers as log-probabilities of a single token."""
    top = [
        {"token": name, "logprob": math.log(count / len(answers))}
        for name, count in Counter(answers).most_common()
    ]
    (own,) = (entry for entry in top if entry["token"] == answer)
    return {"content": [own | {"top_logprobs": top}]}


async def _serve(port: int) -> None:
    people = People({review.text: review.answers for review in load_reviews()})
    runner = web.AppRunner(people.make_app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port; it is printed")
    asyncio.run(_serve(parser.parse_args().port))
