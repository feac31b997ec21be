"""A session's actors on Ray: the keeper of its quota, and its workers."""

import asyncio
from socket import gethostname
from typing import Any

import pyarrow as pa
from ray.util.metrics import Counter, Gauge

from common.environment import load_environment, read_api_key
from common.errors import DistillError, InputError, SettingsError
from common.labels.known import read_answered
from common.labels.worker import Worker
from common.quota.protocol import Lease, Snapshot, Tally, Totals
from common.quota.quota import Quota
from common.records import Example, make_label_table
from common.run.lock import is_locked
from common.run.run import PackedRun, Run

_OWNER_SILENCE_SECONDS = 5.0
"""A driver that is not heard of for so long is dead; calls without it would be lost on the next."""


class QuotaKeeper:
    """The job's quota, where all actors reach it; its figures also as Ray metrics."""

    def __init__(self, quota: Quota) -> None:
        """Goes on with what the quota knows."""
        quota.require_heartbeat(_OWNER_SILENCE_SECONDS)
        self._quota = quota
        self._begun: set[str] = set()
        self._counters = {
            name: Counter(f"distill_label_{name}", f"{name} of the label job")
            for name in Totals.__slots__
        }
        self._in_flight = Gauge("distill_label_in_flight", "calls in flight")
        self._reported = Totals()

    def renew(self, name: str, tally: Tally) -> Lease:
        """See `Quota.renew`."""
        return self._quota.renew(name, tally)

    def snapshot(self, may_start: bool = True) -> Snapshot:
        """See `Quota.snapshot`."""
        snapshot = self._quota.snapshot(may_start)
        for name, counter in self._counters.items():
            if (more := getattr(snapshot.totals, name) - getattr(self._reported, name)) > 0:
                counter.inc(more)
        self._reported = snapshot.totals
        self._in_flight.set(snapshot.in_flight)
        return snapshot

    def stop(self, failure: DistillError) -> None:
        """See `Quota.stop`."""
        self._quota.stop(failure)

    def begin(self, block: str) -> bool:
        """Notes that a block is begun; whether it was begun before, by a worker that is gone."""
        was_begun = block in self._begun
        self._begun.add(block)
        return was_begun


class LabelActor:
    """One worker, in the actor's event loop."""

    def __init__(
        self, packed: PackedRun, url: str, keeper: Any, known: Any, needs_key: bool
    ) -> None:
        """See `Worker`; `keeper` is the session's, `known` a reference to a dictionary.

        A teacher's key, if it `needs_key`, is in the environment of the actor's node.
        """
        self._packed, self._url, self._needs_key = packed, url, needs_key
        self._keeper, self._known = keeper, known
        self._opening: asyncio.Task[tuple[Run, Worker]] | None = None

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Labels a block. If the job is to stop, the driver hears of it from the quota."""
        self._opening = self._opening or asyncio.create_task(self._open())
        try:
            run, worker = await self._opening
        except DistillError as error:
            await self._keeper.stop.remote(type(error)(f"{error} (on {gethostname()})"))
            return make_label_table([])
        examples = [Example(**row) for row in batch.to_pylist()]
        if await self._keeper.begin.remote(examples[0].id):
            worker.add_known(await asyncio.to_thread(read_answered, run.storage))
        try:
            return make_label_table(await worker.label(examples))
        except DistillError:
            return make_label_table([])

    async def _open(self) -> tuple[Run, Worker]:
        """Raises a DistillError if this node lacks what the job's own has."""
        load_environment()  # this node's own secret files may hold the keys of the object store
        run = self._packed.open()
        if not is_locked(run.storage):
            raise InputError(
                f"DISTILL_STORAGE__ROOT: {run.storage.url} is not the job's folder on this node of "
                "the Ray cluster; name a root that all nodes share, such as s3://bucket/prefix"
            )
        if self._needs_key:
            key = read_api_key()
            if not key.get_secret_value():
                raise SettingsError(
                    "DISTILL_TEACHER__API_KEY is not set on this node of the Ray cluster; put it "
                    "into the environment of its containers: keys are not sent along with a job"
                )
            run = run.with_key(key)

        async def renew(name: str, tally: Tally) -> Lease:
            lease: Lease = await self._keeper.renew.remote(name, tally)
            return lease

        return run, Worker(run, self._url, renew, await self._known)
