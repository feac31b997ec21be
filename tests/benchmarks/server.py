"""A teacher on loopback, in a process of its own: quick, with a quota, faults and exact counts.

`python -m tests.benchmarks.server --latency 0.1` prints its port on a line. It speaks as little
HTTP as the clients need, on a bare asyncio protocol, so that it is not what a benchmark measures.
GET /stats gives its counts; all its times are those of the monotonic clock, in seconds.
"""

import argparse
import asyncio
import json
import math
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields

ANSWER = "She goes to school every day, and that is the sentence as it should have been."
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 503: "Busy"}


@dataclass
class ServerSettings:
    """What the server is like. The quotas are token buckets; 0 means that there is none."""

    latency: float = 0.1
    requests_per_minute: float = 0
    burst: float = 20
    """Requests that the quota grants at once, after a quiet time."""
    tokens_per_minute: float = 0
    token_burst: float = 6_000
    prompt_tokens: int = 280
    completion_tokens: int = 20
    headers: bool = True
    """Whether replies tell the quota by x-ratelimit-* headers."""
    retry_after: str = "fraction"
    """Of a 429: fraction (seconds with decimals), ceil (whole seconds) or none."""
    errors: float = 0
    """Share of calls answered 503; then those that are reset, cut short, and never answered."""
    resets: float = 0
    truncated: float = 0
    hangs: float = 0
    seed: int = 0


class Bucket:
    """A token bucket, which refills with time."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self.per_minute, self.burst = per_minute, burst
        self._level, self._at = burst, time.monotonic()

    def level(self) -> float:
        now = time.monotonic()
        self._level += (now - self._at) * self.per_minute / 60
        self._level, self._at = min(self.burst, self._level), now
        return self._level

    def take(self, amount: float) -> None:
        self._level -= amount

    def seconds_until(self, amount: float) -> float:
        """How long until the bucket holds `amount`."""
        missing = amount - self.level()
        return max(0.0, missing * 60 / self.per_minute) if self.per_minute else 0.0


class Server:
    """The state that all connections share."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.calls, self.in_flight, self.most_in_flight = 0, 0, 0
        self.outcomes: Counter[str] = Counter()
        self.asked: Counter[int] = Counter()
        self.paid: Counter[int] = Counter()
        self.started, self.ended = array("d"), array("d")
        per_call = settings.prompt_tokens + settings.completion_tokens
        self.buckets = {
            name: (Bucket(per_minute, burst), amount)
            for name, per_minute, burst, amount in (
                ("requests", settings.requests_per_minute, settings.burst, 1),
                ("tokens", settings.tokens_per_minute, settings.token_burst, per_call),
            )
            if per_minute
        }
        self.good = self.make_good_body()
        self.response = make_response(200, self.good)

    def make_good_body(self) -> bytes:
        prompt, completion = self.settings.prompt_tokens, self.settings.completion_tokens
        message = {"role": "assistant", "content": ANSWER, "refusal": None}
        content = {
            "id": "chatcmpl-BenchmarkBenchmarkBenchmark",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "big",
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
            "system_fingerprint": "fp_0123456789",
        }
        return json.dumps(content).encode()

    def choose(self, body: bytes) -> tuple[str, bytes, float]:
        """What becomes of a call: its outcome's name, the response, the seconds until then."""
        self.calls += 1
        self.asked[hash(body)] += 1
        for bucket, amount in self.buckets.values():
            if bucket.level() < amount:
                wait = max(b.seconds_until(a) for b, a in self.buckets.values())
                return "rate_limit", self.refuse(wait), 0.0
        for bucket, amount in self.buckets.values():
            bucket.take(amount)
        latency, dice = self.settings.latency, self.random.random()
        for name in ("errors", "resets", "truncated", "hangs"):
            dice -= getattr(self.settings, name)
            if dice < 0:
                return name, self.spoil(name), latency
        return "ok", self.reply(), latency

    def reply(self) -> bytes:
        if not (self.buckets and self.settings.headers):
            return self.response
        return make_response(200, self.good, self.limit_headers())

    def refuse(self, wait: float) -> bytes:
        headers = self.limit_headers() if self.settings.headers else ""
        if self.settings.retry_after != "none":
            shown = math.ceil(wait) if self.settings.retry_after == "ceil" else round(wait, 3)
            headers += f"retry-after: {shown}\r\n"
        error = {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}
        return make_response(429, json.dumps({"error": error}).encode(), headers)

    def limit_headers(self) -> str:
        return "".join(
            f"x-ratelimit-limit-{name}: {bucket.per_minute:.0f}\r\n"
            f"x-ratelimit-remaining-{name}: {max(0, int(bucket.level()))}\r\n"
            f"x-ratelimit-reset-{name}: {bucket.seconds_until(bucket.burst):.3f}s\r\n"
            for name, (bucket, _) in self.buckets.items()
        )

    def spoil(self, name: str) -> bytes:
        if name == "errors":
            return make_response(503, b'{"error": {"message": "overloaded"}}')
        return make_response(200, self.good[: len(self.good) // 2]) if name == "truncated" else b""

    def describe(self) -> bytes:
        """The counts, for GET /stats."""
        stats = {
            "calls": self.calls,
            "outcomes": dict(self.outcomes),
            "most_in_flight": self.most_in_flight,
            "prompts": len(self.asked),
            "asked_times": dict(Counter(self.asked.values())),
            "paid_times": dict(Counter(self.paid.values())),
            "started": list(self.started),
            "ended": list(self.ended),
        }
        return make_response(200, json.dumps(stats).encode())


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests come one after the other, without pipelining."""

    def __init__(self, server: Server, later: Callable[..., asyncio.TimerHandle]) -> None:
        self.server, self.later = server, later
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.received[:end].lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.received) < end + 4 + size:
            return
        body = self.received[end + 4 :]
        self.received = b""
        self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        server = self.server
        if head.startswith(b"get /stats"):
            self.transport.write(server.describe())
        elif head.startswith(b"get"):
            self.transport.write(make_response(200, b'{"object": "list", "data": []}'))
        elif b'"messages": []' in body or b'"messages":[]' in body:  # curator probes so for limits
            headers = server.limit_headers() if server.settings.headers else ""
            self.transport.write(make_response(400, b'{"error": {"message": "empty"}}', headers))
        else:
            server.started.append(time.monotonic())
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            self.later(*self.plan(body))

    def plan(self, body: bytes) -> tuple[float, Callable[..., None], str, bytes, int]:
        outcome, response, seconds = self.server.choose(body)
        return seconds, self.finish, outcome, response, hash(body)

    def finish(self, outcome: str, response: bytes, prompt: int) -> None:
        server = self.server
        server.in_flight -= 1
        server.outcomes[outcome] += 1
        server.ended.append(time.monotonic())
        if outcome in ("ok", "truncated"):
            server.paid[prompt] += 1
        if outcome == "resets":
            self.transport.abort()
        elif response:  # a hang has none
            self.transport.write(response)


def make_response(status: int, body: bytes, headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


async def serve(settings: ServerSettings) -> None:
    loop, server = asyncio.get_running_loop(), Server(settings)
    listener = await loop.create_server(
        lambda: Connection(server, loop.call_later), "127.0.0.1", 0, backlog=4096
    )
    print(listener.sockets[0].getsockname()[1], flush=True)
    await listener.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(ServerSettings):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(flag, type=field.type, default=field.default)
    asyncio.run(serve(ServerSettings(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
