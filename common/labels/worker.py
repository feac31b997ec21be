"""A session's worker: calls the teacher and makes label rows of its replies."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from common.labels.label_row import make_label
from common.labels.resume import make_keys
from common.quota.leases import Leases, Renew
from common.records import Example, LabelRow
from common.run.run import Run
from common.teacher.client import Teacher
from common.teacher.journal import JournalWriter
from common.teacher.replies import Reply
from common.teacher.requests import make_request

T = TypeVar("T")


class Worker:
    """Labels examples through one teacher client and one journal writer."""

    def __init__(
        self, run: Run, url: str, renew: Renew, known: Mapping[str, Reply] | None = None
    ) -> None:
        """`renew` reaches the session's quota; `known` replies, by key, need no calls."""
        self._settings, self._task = run.settings, run.task
        self._known = dict(known or {})
        journal = JournalWriter(run.storage)
        self._leases = Leases(renew, storage_error=lambda: journal.storage_error)
        self._teacher = Teacher(
            run.settings.teacher, url, self._leases, run.price, keep=journal.append
        )

    async def label(self, examples: Sequence[Example]) -> list[LabelRow]:
        """Labels examples concurrently; rows are in their order.

        Raises:
            DistillError: the job stops, after its calls in flight have been journaled.
        """
        try:
            return await _gather(self._label_one(example) for example in examples)
        finally:
            await self._leases.flush()  # also the calls that end after a refusal

    async def _label_one(self, example: Example) -> LabelRow:
        if not example.text.strip():
            return make_label(example, [], self._task)
        body = make_request(self._settings.teacher, self._task, example.text)
        keys = make_keys(self._settings, body)
        replies = await _gather(self._ask(body, key) for key in keys)
        return make_label(example, replies, self._task)

    async def _ask(self, body: dict[str, object], key: str) -> Reply:
        return self._known.get(key) or await self._teacher.ask(body, key)

    def add_known(self, replies: Mapping[str, Reply]) -> None:
        """Adds replies that need no calls."""
        self._known.update(replies)

    async def close(self) -> None:
        """Closes the teacher's connections."""
        await self._teacher.close()


async def _gather(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; raises the first error once all calls have ended."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    results: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results
