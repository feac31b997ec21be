"""A session's worker: calls the teacher and makes label rows of its replies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from common.errors import DistillError
from common.labels.label_row import Outcome, make_label
from common.labels.resume import make_keys
from common.quota.leases import Leases, Renew
from common.records import Example
from common.run.run import Run
from common.teacher.client import Teacher, gather
from common.teacher.journal import JournalWriter
from common.teacher.replies import Reply
from common.teacher.requests import make_request


class Worker:
    """Labels examples through one teacher client and one journal writer."""

    def __init__(
        self,
        run: Run,
        url: str,
        renew: Renew,
        known: Mapping[str, Reply] | None = None,
        keeps_replies: bool = False,
    ) -> None:
        """`renew` reaches the session's quota; `known` replies, by key, need no calls.

        `keeps_replies`: outcomes have their replies, until `forget`.
        """
        self._keeps_replies = keeps_replies
        self._settings, self._task = run.settings, run.task
        self._known = dict(known or {})
        self._owners: dict[str, str] = {}
        """The examples of the keys that are asked for."""
        self._kept: dict[str, list[Reply]] = {}
        """By example."""
        self._journal = JournalWriter(run.storage)
        self._leases = Leases(renew, storage_error=lambda: self._journal.storage_error)
        self._teacher = Teacher(
            run.settings.teacher,
            url,
            self._leases,
            run.price,
            needs_cost=run.settings.label.max_cost_usd is not None,
            keep=self._keep,
        )

    async def label(self, examples: Sequence[Example]) -> list[Outcome]:
        """Labels examples concurrently; outcomes are in their order.

        Raises:
            DistillError: the job stops, after its calls in flight have been journaled.
        """
        try:
            return await gather(self._label_one(example) for example in examples)
        finally:
            await self._leases.flush()  # also the calls that end after a refusal

    async def _label_one(self, example: Example) -> Outcome:
        if not example.text.strip():
            return Outcome(make_label(example, [], self._task))
        body = make_request(self._settings.teacher, self._task, example.text)
        keys = make_keys(self._settings, body)
        missing = [key for key in keys if key not in self._known]
        self._owners |= dict.fromkeys(missing, example.id)
        asked = await self._teacher.ask(body, missing) if missing else []
        for key in missing:
            self._owners.pop(key, None)
        replies = {reply.key: reply for reply in asked}
        found = [replies.get(key) or self._known[key] for key in keys]
        try:
            row = make_label(example, found, self._task)
        except DistillError as error:  # a rule of the task
            self._leases.fail(error)
            raise
        return Outcome(row, self._kept.get(example.id, []))

    async def _keep(self, reply: Reply) -> None:
        reply = replace(reply, example_id=self._owners.get(reply.key, ""))
        if self._keeps_replies:
            self._kept.setdefault(reply.example_id, []).append(reply)
        await self._journal.append(reply)

    async def start_file(self, ended: Sequence[Outcome]) -> list[str]:
        """Starts a journal file without the replies of what has `ended`.

        Returns the names of those before. Raises a StorageError.
        """
        ids = {outcome.row.id for outcome in ended}

        def list_open() -> Iterator[Reply]:
            for id, replies in self._kept.items():
                if id not in ids:
                    yield from replies

        return await self._journal.start_file(list_open)

    def forget(self, ended: Sequence[Outcome]) -> None:
        """Forgets the replies of what has `ended`."""
        for outcome in ended:
            self._kept.pop(outcome.row.id, None)

    def add_known(self, replies: Mapping[str, Reply]) -> None:
        """Adds replies that need no calls."""
        self._known.update(replies)

    async def close(self) -> None:
        """Closes the teacher's connections."""
        await self._teacher.close()
