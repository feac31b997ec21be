"""Gets labels from the teacher: ask, journal, parse; what the journal holds is not asked again."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from common.builtin.teacher import running_stand_in
from common.journal import JournalWriter, read_journal
from common.labeling import make_label
from common.manifest import Fingerprint
from common.records import Example, LabelRow
from common.settings import BUILTIN, Settings
from common.storage import RunStorage
from common.tasks import Task
from common.teacher import Teacher, make_key, make_request


class Labeler:
    """Labels examples through one teacher client and one journal writer."""

    def __init__(self, settings: Settings, task: Task, url: str, share: float = 1.0) -> None:
        """`url` is where the teacher is; `share` is this labeler's part of the job's limits."""
        self._settings, self._task = settings, task
        journal = JournalWriter(RunStorage(settings))
        self._teacher = Teacher(settings.teacher, url, share, keep=journal.append)

    async def label(self, examples: Sequence[Example]) -> list[LabelRow]:
        """Labels examples concurrently, in their order.

        Raises:
            TeacherRefusedError, InputError: the first refusal; the other calls are cancelled.
        """
        tasks = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._label_one(example)) for example in examples]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _label_one(self, example: Example) -> LabelRow:
        if not example.text.strip():
            return make_label(example, None, self._task)
        body = make_request(self._settings.teacher, self._task, example.text)
        reply = await self._teacher.ask(body, make_key(self._settings.teacher, body))
        return make_label(example, reply, self._task)

    async def check(self) -> None:
        """See `Teacher.check`."""
        await self._teacher.check()

    async def close(self) -> None:
        """Closes the teacher's connections."""
        await self._teacher.close()


@contextmanager
def open_teacher(settings: Settings) -> Iterator[str]:
    """The URL of the teacher; the stand-in is started, and stopped at the end."""
    is_stand_in = settings.teacher.base_url == BUILTIN
    with running_stand_in() if is_stand_in else nullcontext(settings.teacher.base_url) as url:
        yield url


def fingerprint_teacher(settings: Settings, task: Task) -> Fingerprint:
    """What a label depends on, beside its text."""
    names = ("base_url", "model", "endpoint", "max_tokens", "temperature")
    return {
        "task": f"{task.name} {task.label_fingerprint}",
        **{f"teacher.{name}": getattr(settings.teacher, name) for name in names},
    }


def label_known(
    settings: Settings, task: Task, storage: RunStorage, examples: Sequence[Example]
) -> dict[str, LabelRow]:
    """The rows, by id, whose replies the journal holds: parsed again, at no cost.

    A reply that cannot be parsed does not count, nor a refusal, which costs nothing to ask for
    again.
    """
    journal = read_journal(storage)
    rows = {}
    for example in examples if journal else []:
        key = make_key(settings.teacher, make_request(settings.teacher, task, example.text))
        if key in journal and journal[key].http_status == 200:
            rows[example.id] = make_label(example, journal[key], task)
    return {id: row for id, row in rows.items() if row.error != "bad_response"}
