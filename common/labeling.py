"""From example to label row: ask, journal, parse, apply the task's rules."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from common.builtin.teacher import running_stand_in
from common.journal import JournalWriter, read_journal
from common.manifest import Fingerprint
from common.records import Example, LabelRow
from common.replies import Answer, Reply, read_answer
from common.settings import BUILTIN, Settings
from common.storage import RunStorage
from common.tasks import LabelRules, Task
from common.teacher import Teacher, make_key, make_request

_SHORT_TEXT_CHARACTERS = 20
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "„": "“", "`": "`"}


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


def make_label(example: Example, reply: Reply | None, task: Task) -> LabelRow:
    """The label row for a reply; None where the text was blank and nobody was asked."""
    if reply is None:
        return LabelRow(example.id, example.text, "failed", error="empty_text")
    answer = read_answer(reply)
    if answer.error is not None:
        return _row(example, reply, answer, "failed", None, answer.error)
    label, reason = apply_rules(example.text, answer.text, task.label_rules)
    if reason is not None:
        return _row(example, reply, answer, "filtered", None, reason)
    return _row(example, reply, answer, "ok", label, None)


def _row(
    example: Example,
    reply: Reply,
    answer: Answer,
    status: str,
    label: str | None,
    error: str | None,
) -> LabelRow:
    return LabelRow(
        id=example.id,
        text=example.text,
        status=status,
        label=label,
        error=error,
        message=answer.message,
        response=answer.text or None,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        attempts=reply.attempts,
        seconds=reply.seconds,
    )


def apply_rules(text: str, response: str, rules: LabelRules) -> tuple[str, str | None]:
    """The label in a response, and the name of the rule that rejects it, or None."""
    label = response.strip()
    if rules.unquote and len(label) > 1 and not text.startswith(label[0]):
        inner, closing = label[1:-1], _QUOTES.get(label[0])
        if closing == label[-1] and not {label[0], closing} & set(inner):
            label = inner.strip()
    if rules.lower_case:
        label = label.lower()
    if rules.allowed and label.rstrip(".!") in rules.allowed:
        label = label.rstrip(".!")
    ratio = len(label) / max(len(text), 1)
    long_text = len(text) >= _SHORT_TEXT_CHARACTERS
    checks = {
        "empty": not label,
        "not_allowed": bool(rules.allowed) and label not in rules.allowed,
        "several_lines": rules.single_line and "\n" in label and "\n" not in text,
        "pattern": any(
            re.search(p, label) and not re.search(p, text) for p in rules.reject_patterns
        ),
        "length_ratio": long_text and not rules.min_length_ratio <= ratio <= rules.max_length_ratio,
    }
    return label, next((name for name, rejected in checks.items() if rejected), None)
