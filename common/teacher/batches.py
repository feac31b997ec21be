"""OpenAI's Batch API: files of requests that are answered within a day, at half the price.

Groq, Together, Mistral-compatible gateways and the batch gateways of vLLM and llm-d speak it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import openai

from common.errors import DistillError, InputError
from common.sections import TeacherSettings
from common.teacher.address import Secrets, find_certificates, is_local, make_headers
from common.teacher.api_errors import WRONG_SHAPE, read_error
from common.teacher.statuses import explain, match_rule

_METADATA = "distill_chunk"
_ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True)
class Batch:
    """A batch as the API tells of it; `counts` are its requests: total, completed, failed."""

    id: str
    status: str
    files: tuple[str, ...]
    counts: tuple[int, int, int]
    error: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in _ENDED


@dataclass(frozen=True)
class Result:
    """The outcome of a request; status 0 without a response: it was not answered in time."""

    key: str
    status: int
    body: str


class BatchApi:
    """The client. Every method raises a DistillError if the API refuses or cannot be reached."""

    def __init__(self, settings: TeacherSettings, url: str) -> None:
        self._settings, self._secrets, parts = settings, Secrets(settings), urlsplit(url)
        http = openai.DefaultHttpxClient(
            trust_env=not is_local(settings, url), verify=find_certificates()
        )
        self._client = openai.OpenAI(
            base_url=urlunsplit(parts._replace(query="")),
            default_query=dict(parse_qsl(parts.query)),
            api_key=settings.api_key.get_secret_value() or "none",
            default_headers=make_headers(settings),
            http_client=http,
            max_retries=5,
        )
        path = "chat/completions" if settings.endpoint == "chat" else "completions"
        self._endpoint: Any = f"/v1/{path}"

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def encode(self, requests: dict[str, dict[str, Any]]) -> bytes:
        """The file of a chunk: a line per request, with its key."""
        fixed = {"method": "POST", "url": self._endpoint}
        lines = (
            json.dumps({"custom_id": key, **fixed, "body": body}) for key, body in requests.items()
        )
        return "".join(f"{line}\n" for line in lines).encode()

    def submit(self, chunk: str, content: bytes) -> str:
        """Uploads a chunk's file and creates its batch; returns the batch's id."""
        try:
            file = self._client.files.create(file=(f"{chunk}.jsonl", content), purpose="batch")
            return self._client.batches.create(
                input_file_id=file.id,
                endpoint=self._endpoint,
                completion_window="24h",
                metadata={_METADATA: chunk},
            ).id
        except openai.OpenAIError as error:
            raise self._convert("/batches", error) from None

    def find(self, chunk: str) -> str | None:
        """The id of a chunk's batch in the listing; None if it was never created."""
        try:
            for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(_METADATA) == chunk:
                    return batch.id
        except openai.OpenAIError as error:
            raise self._convert("/batches", error) from None
        return None

    def get(self, id: str) -> Batch:
        """The state of a batch."""
        try:
            found = self._client.batches.retrieve(id)
        except openai.OpenAIError as error:
            raise self._convert(f"/batches/{id}", error) from None
        counts = found.request_counts
        errors = found.errors.data if found.errors and found.errors.data else []
        return Batch(
            found.id,
            found.status,
            tuple(name for name in (found.output_file_id, found.error_file_id) if name),
            (counts.total, counts.completed, counts.failed) if counts else (0, 0, 0),
            self._secrets.redact("; ".join(f"{e.code}: {e.message}" for e in errors)),
        )

    def read_results(self, batch: Batch) -> Iterator[Result]:
        """The results of a batch that has ended, in no order."""
        for name in batch.files:
            try:
                text = self._client.files.content(name).text
            except openai.OpenAIError as error:
                raise self._convert(f"/files/{name}/content", error) from None
            for line in text.splitlines():
                if result := self._read_result(line):
                    yield result

    def _read_result(self, line: str) -> Result | None:
        try:
            found = json.loads(line)
            response, key = found.get("response") or {}, str(found["custom_id"])
            status = int(response.get("status_code") or 0)
            body = response.get("body") if status else found.get("error")
            text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        except WRONG_SHAPE:
            return None
        return Result(key, status, self._secrets.redact(text))

    def _convert(self, path: str, error: openai.OpenAIError) -> DistillError:
        if not isinstance(error, openai.APIStatusError):
            reason = self._secrets.redact(f"{error} {error.__cause__ or ''}".strip())
            return DistillError(
                f"the teacher's batches at {self._settings.base_url} cannot be reached ({reason}); "
                "run again"
            )
        status, body = error.status_code, self._secrets.redact(error.response.text)
        if status in (404, 405, 501):
            return InputError(
                f"DISTILL_LABEL__LANE=batch: the API at {self._settings.base_url} has no batches "
                f"({path}: {status} {read_error(body).message}); unset it to ask online"
            )
        found = read_error(body)
        return explain(match_rule(status, found), self._settings, path, status, found)
