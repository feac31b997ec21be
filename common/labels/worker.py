"""A session's worker: calls the teacher and makes label rows of its replies."""

from collections.abc import Mapping, Sequence

from common.labels.label_row import make_label
from common.labels.resume import make_keys
from common.quota.leases import Leases, Renew
from common.records import Example, LabelRow
from common.run.run import Run
from common.teacher.client import Teacher, gather
from common.teacher.journal import JournalWriter
from common.teacher.replies import Reply
from common.teacher.requests import make_request


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
            run.settings.teacher,
            url,
            self._leases,
            run.price,
            needs_cost=run.settings.label.max_cost_usd is not None,
            keep=journal.append,
        )

    async def label(self, examples: Sequence[Example]) -> list[LabelRow]:
        """Labels examples concurrently; rows are in their order.

        Raises:
            DistillError: the job stops, after its calls in flight have been journaled.
        """
        try:
            return await gather(self._label_one(example) for example in examples)
        finally:
            await self._leases.flush()  # also the calls that end after a refusal

    async def _label_one(self, example: Example) -> LabelRow:
        if not example.text.strip():
            return make_label(example, [], self._task)
        body = make_request(self._settings.teacher, self._task, example.text)
        keys = make_keys(self._settings, body)
        missing = [key for key in keys if key not in self._known]
        asked = await self._teacher.ask(body, missing) if missing else []
        replies = {reply.key: reply for reply in asked}
        found = [replies.get(key) or self._known[key] for key in keys]
        return make_label(example, found, self._task)

    def add_known(self, replies: Mapping[str, Reply]) -> None:
        """Adds replies that need no calls."""
        self._known.update(replies)

    async def close(self) -> None:
        """Closes the teacher's connections."""
        await self._teacher.close()
