"""A session's workers on Ray."""

import asyncio
from collections.abc import Sequence
from socket import gethostname
from typing import Any

import pyarrow as pa

from common.environment import load_environment, read_teacher_secrets
from common.errors import DistillError, InputError, SettingsError
from common.labels.resume import read_answered
from common.labels.worker import Worker
from common.quota.protocol import Lease, Tally
from common.records import Example, make_label_table
from common.run.lock import is_locked
from common.run.run import PackedRun, Run
from common.tasks.languages import load_detector


class LabelActor:
    """One worker, in the actor's event loop."""

    def __init__(
        self, packed: PackedRun, url: str, keeper: Any, known: Any, needed: Sequence[str]
    ) -> None:
        """See `Worker`; `known` is a Ray reference. The node has the `needed` secret settings."""
        self._packed, self._url, self._needed = packed, url, needed
        self._keeper, self._known = keeper, known
        self._opening: asyncio.Task[tuple[Run, Worker]] | None = None
        self._loading: asyncio.Task[Any] | None = None

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Labels a block. A failure reaches the driver through the quota."""
        self._opening = self._opening or asyncio.create_task(self._open())
        try:
            run, worker = await self._opening
        except DistillError as error:
            await self._keeper.stop.remote(type(error)(f"{error} (on {gethostname()})"))
            return make_label_table([])
        examples = [Example(**row) for row in batch.to_pylist()]
        if await self._keeper.start_block.remote(examples[0].id):
            limit = run.settings.teacher.max_tokens
            worker.add_known(await asyncio.to_thread(read_answered, run.storage, limit))
        try:
            return make_label_table(await worker.label(examples))
        except DistillError:
            return make_label_table([])

    async def _open(self) -> tuple[Run, Worker]:
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
            lease: Lease = await self._keeper.renew.remote(name, tally)
            return lease

        return run, Worker(run, self._url, renew, await self._known)
