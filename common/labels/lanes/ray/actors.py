"""A session's workers on Ray."""

import asyncio
import faulthandler
import logging
import os
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from socket import gethostname
from typing import Any, NoReturn, TypeVar

import pyarrow as pa

from common.data.examples import Examples
from common.environment import load_environment, read_teacher_secrets
from common.errors import DistillError, InputError, SettingsError, StorageError, explain_error
from common.labels.parts import Parts
from common.labels.resume import read_known
from common.labels.worker import Worker
from common.quota.protocol import Lease, Tally
from common.records import Example, make_label_table
from common.run.lock import is_locked
from common.run.run import PackedRun
from common.signals import die_with_parent
from common.tasks.languages import load_detector

_FROZEN_SECONDS, _BEAT_SECONDS = 60.0, 5.0
_ANSWER_SECONDS = 60.0
"""By then, the quota has long counted the worker as crashed."""
_MEMORY_ADVICE = "give the nodes more memory or lower DISTILL_LABEL__ACTORS, and run again"

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Desk:
    """What an actor works with, once it is open."""

    worker: Worker
    parts: Parts
    blocks: int = 0
    """At work."""

    def __post_init__(self) -> None:
        self._writing = asyncio.Lock()
        self._old_files: list[str] = []

    async def write_part(self) -> None:
        """Writes what is finished. If the storage fails, that stays in the journal until later."""
        async with self._writing:
            ended = self.parts.take()
            try:
                self._old_files += await self.worker.start_file(ended)
                await asyncio.to_thread(self.parts.write, ended)
            except StorageError as error:
                log.warning("a part cannot be written: %s", error)
                for outcome in ended:
                    self.parts.add(outcome)
                return
            self.worker.forget(ended)
            with suppress(StorageError):  # they are removed with those of the next part
                await asyncio.to_thread(self.parts.run.storage.remove, *self._old_files)
                self._old_files.clear()


class LabelActor:
    """One worker, in the actor's event loop."""

    def __init__(
        self,
        packed: PackedRun,
        url: str,
        keeper: Any,
        known: Any,
        needed: Sequence[str],
        labels: tuple[str, str],
    ) -> None:
        """See `Worker`; `known` is a Ray reference. The node has the `needed` secret settings.

        `labels` are the fingerprint and the session of the label parts.
        """
        die_with_parent()
        self._packed, self._url, self._needed = packed, url, needed
        self._keeper, self._known, self._labels = keeper, known, labels
        self._opening: asyncio.Task[Desk] | None = None
        self._loading: asyncio.Task[Any] | None = None
        self._guarding: asyncio.Task[None] | None = None

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Labels a block, whose rows go into a part. A failure reaches the driver by the quota."""
        self._guarding = self._guarding or asyncio.create_task(end_if_frozen())
        self._opening = self._opening or asyncio.create_task(self._open())
        try:
            desk = await self._opening
        except Exception as error:
            await self._fail(error)
            return make_label_table([])
        desk.blocks += 1
        try:
            await self._label(desk, [Example(**row) for row in batch.to_pylist()])
        except DistillError as error:
            log.debug("a block has ended: %s", error)  # the driver knows by the quota
        except Exception as error:
            await self._fail(error)
        finally:
            desk.blocks -= 1
        is_last = not desk.blocks and await hear(self._keeper.has_started_all.remote())
        if desk.parts.is_full or is_last:
            await desk.write_part()
        return make_label_table([])

    async def _fail(self, error: Exception) -> None:
        """Ends the job. Of another error than ours, Ray would tell little."""
        log.warning("a block has failed", exc_info=error)  # into Ray's log
        failure = explain_error("a label actor", error, _MEMORY_ADVICE)
        await hear(self._keeper.stop.remote(type(failure)(f"{failure} (on {gethostname()})")))

    async def _label(self, desk: Desk, examples: Sequence[Example]) -> None:
        if await hear(self._keeper.start_block.remote(examples[0].id, len(examples))):
            examples = await asyncio.to_thread(_find_missing, desk, examples)
        for outcome in await desk.worker.label(examples):
            desk.parts.add(outcome)

    async def _open(self) -> Desk:
        """Raises a DistillError if this node lacks the job's storage or the teacher's key."""
        load_environment()  # this node's secret files may hold the object store's keys
        secrets = read_teacher_secrets() if self._needed else {}
        run = self._packed.open(secrets)
        if not is_locked(run.storage):
            raise InputError(
                f"DISTILL_STORAGE__ROOT: {run.storage.url} is not the job's folder on this node of "
                "the Ray cluster; name a root that all nodes share, such as s3://bucket/prefix"
            )
        for name in self._needed:
            if not secrets[name]:
                raise SettingsError(
                    f"DISTILL_TEACHER__{name.upper()} is not set on this node of the Ray cluster; "
                    "put it into the environment of its containers: secrets are not sent with a job"
                )

        if languages := run.task.label_rules.languages:  # while the first calls wait
            self._loading = asyncio.create_task(asyncio.to_thread(load_detector, tuple(languages)))

        async def renew(name: str, tally: Tally) -> Lease:
            lease: Lease = await hear(self._keeper.renew.remote(name, tally))
            return lease

        worker = Worker(run, self._url, renew, await self._known, keeps_replies=True)
        return Desk(worker, Parts(run, *self._labels))


async def end_if_frozen() -> None:
    """Ends this process if its event loop stands still for a minute; Ray starts another.

    Else the job would wait for its rows for ever. What stops the loop may hold the interpreter's
    lock, without which only faulthandler's thread runs.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(_FROZEN_SECONDS, exit=True, file=2)
            await asyncio.sleep(_BEAT_SECONDS)
    except RuntimeError as error:  # there is no memory for a thread
        _end(str(error))
    finally:
        faulthandler.cancel_dump_traceback_later()


async def hear(answer: Awaitable[T]) -> T:
    """What the quota's actor answers; ends this process if nothing comes, as `end_if_frozen` does.

    Ray drops an answer for which this process has no memory.
    """
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await answer
    except TimeoutError:
        _end(f"the quota has not answered for {_ANSWER_SECONDS:g} s")


def _end(reason: str) -> NoReturn:
    os.write(2, f"this label actor ends: {reason}\n".encode())  # into Ray's log
    os._exit(1)


def _find_missing(desk: Desk, block: Sequence[Example]) -> Sequence[Example]:
    """The examples of a block that a crashed worker has not finished."""
    examples = Examples.of(block)
    done = desk.parts.find_done(examples)
    known = read_known(desk.parts.run, examples, desk.parts.add, done)
    desk.worker.add_known(known.replies)
    return [example for group in known.missing.read() for example in group]
