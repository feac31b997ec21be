"""S3 servers on loopback: one that fails when told to, before another one; a mock in a process."""

import http.client
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock
from urllib.parse import urlsplit

import fsspec
import pytest

_BODY = "<Error><Code>{}</Code><Message>as the test wants it</Message></Error>"
_METHODS = ("GET", "PUT", "HEAD", "DELETE", "POST")
_CODES = {403: "AccessDenied", 500: "InternalError", 501: "NotImplemented", 503: "SlowDown"}


class FailingStore:
    """`fails` decides on each request: an HTTP status, "drop", "half" a body, or None to pass."""

    def __init__(self, bucket: str, url: str) -> None:
        self.bucket = bucket
        self.fails = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        store, target = self, urlsplit(url).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.close_connection = True
                self.raw_requestline = self.rfile.readline(65537)
                if self.raw_requestline and self.parse_request():
                    self.answer()

            def answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                store.requests.append((self.command, self.path))
                failure = store.fails(self.command, self.path)
                if failure == "drop":
                    self.close_connection = True
                elif isinstance(failure, int):
                    self.reply(failure, {}, _BODY.format(_CODES[failure]).encode())
                else:
                    upstream = http.client.HTTPConnection(target, timeout=10)
                    upstream.request(self.command, self.path, content, dict(self.headers.items()))
                    response = upstream.getresponse()
                    self.reply(
                        response.status,
                        dict(response.getheaders()),
                        response.read(),
                        is_half=failure == "half",
                    )
                    upstream.close()

            def reply(self, status, headers, body, is_half=False) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                length = headers.get("Content-Length") if self.command == "HEAD" else len(body)
                self.send_header("Content-Length", str(length or 0))
                self.send_header("Connection", "close")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if is_half else body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def fail(self, times: int, failure: int | str, methods: Sequence[str] = _METHODS) -> list:
        """The next requests fail that often. What is returned holds the failures still to come."""
        left = [failure] * times
        self.fails = lambda method, path: left.pop() if left and method in methods else None
        return left

    @contextmanager
    def serving(self) -> Iterator["FailingStore"]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


@contextmanager
def running_s3() -> Iterator[dict[str, str]]:
    """A mock of S3 in a process of its own; gives the variables with which clients find it."""
    command = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stdout)
            url = next(match[0] for match in found if match)
            threading.Thread(target=server.stdout.read, daemon=True).start()
            yield {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.kill()


def make_bucket(environment: dict[str, str]) -> str:
    """The URL of a new bucket."""
    url = f"s3://bucket-{uuid.uuid4().hex}"
    with finding_s3(environment):
        fsspec.filesystem("s3").mkdir(url)
    return url


@contextmanager
def finding_s3(environment: dict[str, str]) -> Iterator[None]:
    """Clients that connect in the block find the server of these variables, and keep it."""
    with mock.patch.dict(os.environ, environment):
        fsspec.filesystem("s3").clear_instance_cache()
        try:
            yield
        finally:
            fsspec.filesystem("s3").clear_instance_cache()


@contextmanager
def running_failing_store(
    bucket: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FailingStore]:
    """Stands in front of the server at `url`; nobody waits before asking it again."""
    options = {"use_listings_cache": False, "config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setattr("common.run.storage._client_options", lambda root: options)
    monkeypatch.setattr("common.run.storage._WAIT_SECONDS", 0.001)
    store = FailingStore(bucket, url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        with store.serving():
            yield store
    finally:
        fsspec.filesystem("s3").clear_instance_cache()
