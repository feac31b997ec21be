"""The lane over Ray Data: examples fan out to actors, on this machine or on a Ray cluster."""

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.errors import DistillError
from common.labels.lanes.ray.actors import LabelActor, QuotaKeeper
from common.labels.lanes.ray.cluster import check_ray, end_ray, start_ray
from common.labels.session import Work
from common.quota.protocol import Snapshot
from common.quota.quota import Quota
from common.records import EXAMPLE_SCHEMA, Example

_BLOCK_ROWS = 256
_POLL_SECONDS = 0.25
_QUOTA_SECONDS = 30.0
"""When the quota's actor does not answer for so long, Ray has died without saying so."""
_WORKER_SECONDS = 60.0
"""When no actor lives for so long although a CPU is free, their processes die again and again."""
_END_SECONDS = 3.0
"""How long the data set may take to end."""
_ACTOR_CPUS = 0.1


class RayLane:
    """See `Lane`."""

    def __init__(self, dashboard_host: str | None = None) -> None:
        """`dashboard_host` is where a Ray that this lane starts shows its dashboard."""
        self._dashboard_host = dashboard_host
        self._keeper: Any = None
        self._rows: _Rows | None = None
        self._coming: Any = None

    def open(self) -> None:
        """See `Lane.open`."""
        start_ray(self._dashboard_host)

    def start(self, work: Work) -> None:
        """See `Lane.start`."""
        with _explaining():
            self._keeper = _start_keeper(work.quota)
            self._rows = _Rows(_make_dataset(work, self._keeper))
        self._answered = self._worker_seen = time.monotonic()

    def take(self, seconds: float) -> pa.Table | None:
        """See `Lane.take`."""
        assert self._rows is not None
        with _explaining():
            return self._rows.get(seconds)

    def snapshot(self, may_start: bool) -> Snapshot | None:
        """See `Lane.snapshot`."""
        check_ray()
        with _explaining():
            self._coming = self._coming or self._keeper.snapshot.remote(may_start)
            try:
                snapshot: Snapshot = ray.get(self._coming, timeout=_POLL_SECONDS)
            except ray.exceptions.GetTimeoutError:
                if time.monotonic() > self._answered + _QUOTA_SECONDS:
                    raise
                return None
            self._coming, self._answered = None, time.monotonic()
            self._check_workers(snapshot)
            return snapshot

    def _check_workers(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        if snapshot.workers:
            self._worker_seen = now
        elif now > self._worker_seen + _WORKER_SECONDS:
            if ray.available_resources().get("CPU", 0) >= _ACTOR_CPUS:
                raise DistillError(
                    f"Ray: no label actor has lived for {_WORKER_SECONDS:.0f} s, their processes "
                    "die again and again; see Ray's logs, look at the memory, and run again"
                )
            self._worker_seen = now  # they wait for a CPU

    def stop(self, reason: DistillError) -> None:
        """See `Lane.stop`."""
        with _explaining():
            ray.get(self._keeper.stop.remote(reason), timeout=_END_SECONDS)

    def close(self) -> None:
        """See `Lane.close`."""
        end_ray(can_shut_down=self._rows is None or self._rows.end(_END_SECONDS))


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Makes one kind of error of Ray's."""
    try:
        yield
    except ray.exceptions.RayError as error:
        *_, cause = f"{type(error).__name__}: {error}".strip().splitlines()
        raise DistillError(f"Ray: {cause[:350]}; run again") from None


def _start_keeper(quota: Quota) -> Any:
    """The quota's actor, on the driver's own node: the job lives no longer than that anyway.

    Not softly so: Ray may then choose another node, whose death would be the job's.
    """
    here = ray.get_runtime_context().get_node_id()
    options = {
        "name": f"distill-quota-{uuid.uuid4().hex[:8]}",
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }
    return ray.remote(QuotaKeeper).options(**options).remote(quota)


def _make_dataset(work: Work, keeper: Any) -> "ray.data.Dataset":
    # The annotation is quoted: Ray imports ray.data late, when its log level is set.
    settings = work.run.settings
    actors = min(settings.label.actors, settings.teacher.max_concurrency)
    has_key = bool(settings.teacher.api_key.get_secret_value())
    known = ray.put(dict(work.replies))
    return ray.data.from_arrow(_make_blocks(work.examples)).map_batches(
        LabelActor,
        fn_constructor_args=(work.run.pack(), work.url, keeper, known, has_key),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=8,
            max_concurrent_calls_per_actor=8,
        ),
        num_cpus=_ACTOR_CPUS,
    )


def _make_blocks(examples: Sequence[Example]) -> list[pa.Table]:
    """Small blocks, for Ray works on one block at a time and would make only one of few rows."""
    table = pa.Table.from_pylist([vars(e) for e in examples], schema=EXAMPLE_SCHEMA)
    return [table.slice(at, _BLOCK_ROWS) for at in range(0, len(examples), _BLOCK_ROWS)]


class _Rows:
    """Runs a data set in a thread, so that the main one hears of signals and refusals at once."""

    def __init__(self, dataset: "ray.data.Dataset") -> None:
        self._dataset = dataset
        self._arrived: queue.Queue[pa.Table | BaseException | None] = queue.Queue()
        self._thread = threading.Thread(target=self._iterate, daemon=True)
        self._thread.start()

    def _iterate(self) -> None:
        try:
            for batch in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                self._arrived.put(batch)
            self._arrived.put(None)
        except BaseException as error:
            self._arrived.put(error)

    def get(self, seconds: float) -> pa.Table | None:
        """The next rows; None after the last. Raises queue.Empty if none come in time."""
        batch = self._arrived.get(timeout=seconds)
        if isinstance(batch, ray.exceptions.RayError):
            raise batch
        if isinstance(batch, BaseException):
            raise DistillError(f"Ray Data: {type(batch).__name__}: {batch}") from batch
        return batch

    def end(self, seconds: float) -> bool:
        """Waits until the data set has ended; whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()
