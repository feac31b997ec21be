"""Gets labels from the teacher: ask, journal, parse; what the journal holds is not asked again."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, suppress
from threading import Thread
from typing import Any, TypeVar

from common.builtin.teacher import running_stand_in
from common.errors import DistillError, StoppedError, StorageError
from common.labels.known import make_keys
from common.labels.outcome import make_label
from common.prices.prices import find_price, require_price
from common.quota.leases import Leases, Renew, reach_quota
from common.quota.protocol import Snapshot
from common.quota.quota import Quota
from common.records import Example, LabelRow
from common.run.lock import RunLock
from common.run.manifest import Fingerprint
from common.run.storage import RunStorage
from common.settings import BUILTIN, Settings
from common.tasks.model import Task
from common.teacher.client import Teacher
from common.teacher.journal import JournalWriter
from common.teacher.replies import Reply
from common.teacher.requests import make_request

T = TypeVar("T")
_LOOK_SECONDS = 0.25


class Labeler:
    """Labels examples through one teacher client and one journal writer."""

    def __init__(
        self,
        settings: Settings,
        task: Task,
        url: str,
        renew: Renew,
        known: Mapping[str, Reply] | None = None,
    ) -> None:
        """`url` is where the teacher is, `renew` reaches the job's quota.

        `known` replies, by key, are not asked for.
        """
        self._settings, self._task = settings, task
        self._known = dict(known or {})
        journal = JournalWriter(RunStorage(settings))
        self._leases = Leases(renew, storage_error=lambda: journal.storage_error)
        price = find_price(settings.teacher)
        self._teacher = Teacher(settings.teacher, url, self._leases, price, journal.append)

    async def label(self, examples: Sequence[Example]) -> list[LabelRow]:
        """Labels examples concurrently, in their order.

        Raises:
            DistillError: the job is to stop; the calls in flight were waited for, and journaled.
        """
        try:
            return await _gather(self._label_one(example) for example in examples)
        finally:
            await self._leases.flush()  # also of what ended after a refusal

    async def _label_one(self, example: Example) -> LabelRow:
        if not example.text.strip():
            return make_label(example, [], self._task)
        body = make_request(self._settings.teacher, self._task, example.text)
        keys = make_keys(self._settings, body)
        replies = await _gather(self._ask(body, key) for key in keys)
        return make_label(example, replies, self._task)

    async def _ask(self, body: dict[str, object], key: str) -> Reply:
        return self._known.get(key) or await self._teacher.ask(body, key)

    def learn(self, replies: Mapping[str, Reply]) -> None:
        """Takes replies that are not to be asked for."""
        self._known.update(replies)

    async def close(self) -> None:
        """Closes the teacher's connections."""
        await self._teacher.close()


async def _gather(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; where one fails, its error, but not before all have ended."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    results: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


def make_quota(settings: Settings, spent_usd: float) -> Quota:
    """The quota of a job.

    Raises:
        SettingsError: dollars are capped, and the model's price is not known.
    """
    teacher, cap = settings.teacher, settings.label.max_cost_usd
    if cap is not None:
        require_price(teacher)
    return Quota(
        teacher.requests_per_minute,
        teacher.tokens_per_minute,
        teacher.max_concurrency,
        cap,
        spent_usd,
        sends_scout=True,
    )


def check_teacher(settings: Settings, url: str) -> None:
    """Looks, without a paid call, whether there is a teacher that lets us in.

    Raises:
        SettingsError, InputError, TeacherRefusedError: see `Teacher.check`.
    """

    async def run() -> None:
        teacher = Teacher(settings.teacher, url, Leases(reach_quota(Quota())))
        try:
            await teacher.check()
        finally:
            await teacher.close()

    asyncio.run(run())


def label_here(
    settings: Settings,
    task: Task,
    url: str,
    examples: Sequence[Example],
    quota: Quota,
    lock: RunLock,
    watch: Callable[[Snapshot], None],
    known: Mapping[str, Reply] | None = None,
) -> list[LabelRow]:
    """Labels in this process, without Ray. A signal lets the calls in flight end.

    Raises:
        DistillError: see `Labeler.label`.
    """

    async def run() -> list[LabelRow]:
        labeler = Labeler(settings, task, url, reach_quota(quota), known)
        watcher = asyncio.create_task(look())
        try:
            return await labeler.label(examples)
        finally:
            watcher.cancel()
            await labeler.close()

    async def look() -> None:
        while True:
            try:
                watch(quota.snapshot(lock.is_held))
                lock.check()
            except DistillError as error:
                quota.stop(error)
            await asyncio.sleep(_LOOK_SECONDS)

    rows: Future[list[LabelRow]] = Future()

    def work() -> None:
        try:
            rows.set_result(asyncio.run(run()))
        except BaseException as error:
            rows.set_exception(error)

    lock.risk(settings.teacher.max_concurrency)
    Thread(target=work, daemon=True).start()  # signals are for the main thread
    try:
        return rows.result()
    except StoppedError:
        quota.stop(DistillError("the job is stopping"))
        wait([rows], settings.label.drain_seconds)
        raise
    finally:
        if rows.done():
            with suppress(StorageError):
                lock.risk(0)


@contextmanager
def open_teacher(settings: Settings) -> Iterator[str]:
    """The URL of the teacher; the stand-in is started, and stopped at the end."""
    is_stand_in = settings.teacher.base_url == BUILTIN
    host = _find_own_address() if os.environ.get("RAY_ADDRESS") else "127.0.0.1"
    with running_stand_in(host) if is_stand_in else nullcontext(settings.teacher.base_url) as url:
        yield url


def _find_own_address() -> str:
    """Where other machines of a cluster reach this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: chooses the interface
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def fingerprint_teacher(settings: Settings, task: Task) -> Fingerprint:
    """What a label depends on, beside its text."""
    names = ("base_url", "model", "endpoint", "max_tokens", "temperature", "logprobs")
    return {
        "task": f"{task.name} {task.label_fingerprint}",
        **{f"teacher.{name}": getattr(settings.teacher, name) for name in names},
        "label.samples": settings.label.samples,
    }
