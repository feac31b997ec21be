"""A Hugging Face hub on loopback that takes commits, as far as publishing needs it."""

import base64
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """`files` are those of the last commit; `refusal` is the status of every answer, if it is set.

    Attributes:
        url: of the hub; it has a path of its own, since a client of a server that had the port
            before may still send requests there, which are not the hub's.
        requests: method and path of each.
        created: what was asked for when the repository was made.
        tokens: paths, and the keys that came with them.
    """

    def __init__(self) -> None:
        self.url, self.refusal = "", 0
        self.requests: list[str] = []
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[tuple[str, str | None]] = set()

    @property
    def repository(self) -> str:
        return f"{self.created['organization']}/{self.created['name']}"

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/repos/create"):
            self.created = json.loads(body)
            return {"url": self.url + "/" + self.repository, "name": self.repository}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return {
                "files": [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
                ]
            }
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            self.files = {v["path"]: base64.b64decode(v["content"]) for v in values}
            return {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{self.url}/{self.repository}/commit/0",
            }
        return {"id": "x", "sha": "0" * 40, "siblings": [], "tags": [], "private": True}


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if not f"http://127.0.0.1:{server.server_port}{self.path}".startswith(hub.url):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {self.path}")
            hub.tokens.add((self.path, self.headers.get("Authorization")))
            answer = {"error": "no"} if hub.refusal else hub.answer(self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(hub.refusal or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = answer  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}/{uuid.uuid4().hex}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
