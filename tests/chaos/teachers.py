"""What a teacher may do wrong, seeded: no two of its answers are alike, or all are right."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from aiohttp import web

from common.builtin.correction import correct
from tests.support.fake_teacher import Result, make_body, refuse

KEY = "sk-chaos-4f1d9c27ab30"
"""The API's key, which no file may have. The teacher echoes it in some of its errors."""
_REFUSALS = {
    7: (400, "blocked by policy", "content_policy_violation"),
    9: (403, f"flagged by moderation; your key is {KEY}", None),
    11: (404, "No endpoints found matching your data policy", None),
}
"""By the number in a text, modulo fifty, as are those below."""
_CHATTY, _CUT = 8, 13
"""Answered in a way that a rule filters; cut off at the length limit."""
_SHARES = {
    "5xx": 0.05,
    "reset": 0.02,
    "broken": 0.01,
    "hang": 0.01,
    "page": 0.01,
    "error in 200": 0.01,
    "echo": 0.01,
}


def expect_status(text: str) -> str:
    """The status of the row of a text, whatever happens on the way."""
    number = int(re.findall(r"\d+", text)[0]) % 50
    return "failed" if number in (*_REFUSALS, _CUT) else "filtered" if number == _CHATTY else "ok"


class Faults:
    """Answers among faults, and within a quota."""

    def __init__(
        self, seed: int, per_minute: int, shares: Mapping[str, float] = MappingProxyType(_SHARES)
    ) -> None:
        """`shares`: how often a call fails in a way that passes."""
        self._shares = shares
        self._random = random.Random(seed)
        self._rate = per_minute / 60
        self._level, self._then = self._rate, time.monotonic()
        self.seen: Counter[str] = Counter()

    def __call__(self, text: str, call: int) -> Result:
        return self._disturb() or self._answer(text, call)

    def _answer(self, text: str, call: int) -> Result:
        """Each answer names its call, so that it shows which of two counts."""
        number = int(re.findall(r"\d+", text)[0]) % 50
        if number in _REFUSALS:
            return refuse(*_REFUSALS[number])
        if number == _CHATTY:
            return f"Sure, here is the sentence: {text}"
        answer = f"{text} It was call {call}."
        return make_body(answer, finish_reason="length") if number == _CUT else answer

    def _disturb(self) -> Result | None:
        now = time.monotonic()
        self._level = min(self._rate, self._level + (now - self._then) * self._rate)
        self._then = now
        if self._level < 1:
            self.seen["429"] += 1
            return self._throttle()
        self._level -= 1
        share = self._random.random()
        for kind, width in self._shares.items():
            share -= width
            if share < 0:
                self.seen[kind] += 1
                return self._fail(kind)
        return None

    def _throttle(self) -> web.StreamResponse:
        """The wait is said in one of three ways."""
        headers = [{"Retry-After": "0.5"}, {"retry-after-ms": "500"}, {}]
        chosen = self._random.choice(headers)
        if chosen:
            return refuse(429, "slow down", headers=chosen)
        retry = [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "0.5s"}]
        error = {"code": 429, "message": "slow down", "details": retry}
        return web.json_response([{"error": error}], status=429)

    def _fail(self, kind: str) -> Result:
        if kind == "5xx":
            return refuse(self._random.choice([500, 502, 503, 529]), "try again")
        if kind == "reset":
            return ConnectionResetError()
        if kind == "hang":
            return TimeoutError()
        if kind == "page":
            return web.Response(status=502, text="<html>bad gateway</html>")
        if kind == "error in 200":
            return web.json_response({"error": {"code": 502, "message": "upstream"}})
        if kind == "echo":
            return refuse(500, f"no worker for the key {KEY}")
        text = json.dumps(make_body("A label that is cut off"))
        return web.Response(text=text[: len(text) // 2], content_type="application/json")


class RightAmongFaults(Faults):
    """All answers are right, in several shapes: an undisturbed run has the same labels."""

    def _answer(self, text: str, call: int) -> Result:
        answer = correct(text)
        shapes = (
            answer,
            [{"type": "text", "text": answer}],
            f"<think>Is it right? No.</think>{answer}",
        )
        body = make_body(answer)
        body["choices"][0]["message"]["content"] = self._random.choice(shapes)
        return body


def answer_rightly(text: str, call: int) -> Result:
    """As the built-in teacher does."""
    return correct(text)


def fail_always(text: str, call: int) -> Result:
    """As a server that is down, or a gateway whose server is."""
    return ConnectionResetError() if call % 2 else refuse(503, "overloaded")
