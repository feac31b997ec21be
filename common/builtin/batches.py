"""The stand-in's files and batches: OpenAI's Batch API on loopback, in memory."""

import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Complete = Callable[[Any, str], tuple[int, dict[str, Any]]]
"""From a request's body and its path to a status and a response."""
_ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass
class _Batch:
    id: str
    lines: list[dict[str, Any]]
    facts: dict[str, Any]
    status: str = "validating"
    ready_at: float = 0.0
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


class Batches:
    """Takes files of requests, and answers them when a batch's time has come."""

    def __init__(
        self,
        complete: Complete,
        seconds: float = 0.0,
        answered_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A batch takes so many seconds; if it answers only a share of its requests, it expires."""
        self._complete, self._clock = complete, clock
        self.seconds, self.answered_share = seconds, answered_share
        self.most_queued: float = math.inf
        """A batch fails if more requests would be unanswered."""
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, _Batch] = {}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Adds the endpoints to an app."""
        router.add_post("/v1/files", self._upload)
        router.add_get("/v1/files/{id}/content", self._download)
        router.add_delete("/v1/files/{id}", self._delete)
        router.add_post("/v1/batches", self._create)
        router.add_get("/v1/batches", self._list)
        router.add_get("/v1/batches/{id}", self._get)
        router.add_post("/v1/batches/{id}/cancel", self._cancel)

    def _add_file(self, content: bytes) -> str:
        name = f"file-{uuid.uuid4().hex[:24]}"
        self.files[name] = content
        return name

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form.get("file")
        if form.get("purpose") != "batch" or not isinstance(file, web.FileField):
            return _refuse(400, "purpose should be batch, and file a file")
        content = file.file.read()
        name = self._add_file(content)
        about = {"id": name, "object": "file", "bytes": len(content), "purpose": "batch"}
        more = {"filename": file.filename, "created_at": int(time.time()), "status": "processed"}
        return web.json_response(about | more)

    async def _download(self, request: web.Request) -> web.Response:
        content = self.files.get(request.match_info["id"])
        return _refuse(404, "no such file") if content is None else web.Response(body=content)

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        is_known = self.files.pop(name, None) is not None
        return web.json_response({"id": name, "object": "file", "deleted": is_known})

    async def _create(self, request: web.Request) -> web.Response:
        given = json.loads(await request.read())
        content = self.files.get(given.get("input_file_id", ""))
        if content is None or given.get("completion_window") != "24h":
            return _refuse(400, "input_file_id or completion_window is wrong")
        try:
            lines = [json.loads(line) for line in content.splitlines() if line.strip()]
            names = [line["custom_id"] for line in lines]
        except (ValueError, KeyError, TypeError):
            return _refuse(400, "the file is not JSON Lines with custom_id")
        if len(set(names)) < len(names):
            return _refuse(400, "a custom_id is there twice")
        kept = ("input_file_id", "endpoint", "completion_window", "metadata")
        facts = {name: given.get(name) for name in kept} | {"created_at": int(time.time())}
        batch = _Batch(f"batch_{uuid.uuid4().hex[:24]}", lines, facts)
        batch.ready_at = self._clock() + self.seconds
        at_work = [b for b in self.batches.values() if b.status not in _ENDED]
        if sum(len(b.lines) for b in (*at_work, batch)) > self.most_queued:
            batch.status = "failed"
            message = f"Enqueued token limit reached. Limit: {self.most_queued}."
            error = {"code": "token_limit_exceeded", "message": message}
            batch.facts["errors"] = {"object": "list", "data": [error]}
        self.batches[batch.id] = batch
        return web.json_response(self._describe(batch))

    async def _list(self, request: web.Request) -> web.Response:
        batches = list(reversed(self.batches.values()))  # the newest first
        if after := request.query.get("after"):
            names = [batch.id for batch in batches]
            batches = batches[names.index(after) + 1 :] if after in names else []
        limit = int(request.query.get("limit", 20))
        page = [self._describe(batch) for batch in batches[:limit]]
        more = {"has_more": len(batches) > limit, "last_id": page[-1]["id"] if page else None}
        return web.json_response({"object": "list", "data": page} | more)

    async def _get(self, request: web.Request) -> web.Response:
        batch = self.batches.get(request.match_info["id"])
        return web.json_response(self._describe(batch)) if batch else _refuse(404, "no such batch")

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return _refuse(404, "no such batch")
        if batch.status not in _ENDED:
            self._end(batch, "cancelled", 0)
        return web.json_response(self._describe(batch))

    def _describe(self, batch: _Batch) -> dict[str, Any]:
        """A batch as the API tells of it; it is answered once somebody looks in time."""
        if batch.status not in _ENDED:
            batch.status = "in_progress"
            if self._clock() >= batch.ready_at:
                count = math.ceil(len(batch.lines) * self.answered_share)
                self._end(batch, "completed" if count == len(batch.lines) else "expired", count)
        counts = {
            "total": len(batch.lines),
            "completed": len(batch.output),
            "failed": len(batch.errors),
        }
        return {
            "id": batch.id,
            "object": "batch",
            "status": batch.status,
            "request_counts": counts,
            "output_file_id": batch.facts.get("output_file_id"),
            "error_file_id": batch.facts.get("error_file_id"),
            **batch.facts,
        }

    def _end(self, batch: _Batch, status: str, answered: int) -> None:
        batch.status = status
        for line in batch.lines[:answered]:
            code, body = self._complete(line.get("body"), str(line.get("url", "")))
            response = {"status_code": code, "request_id": uuid.uuid4().hex, "body": body}
            result = {"id": uuid.uuid4().hex, "custom_id": line["custom_id"], "response": response}
            (batch.output if code == 200 else batch.errors).append(result | {"error": None})
        for line in batch.lines[answered:]:
            error = {"code": f"batch_{status}", "message": f"the batch was {status} before it"}
            batch.errors.append({"custom_id": line["custom_id"], "response": None, "error": error})
        for name, results in (("output", batch.output), ("error", batch.errors)):
            if results:
                text = "".join(json.dumps(result) + "\n" for result in results)
                batch.facts[f"{name}_file_id"] = self._add_file(text.encode())


def _refuse(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "code": None, "param": None}
    return web.json_response({"error": error}, status=status)
