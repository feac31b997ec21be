"""Fans examples out to actors with Ray Data, on this machine or on the cluster of RAY_ADDRESS."""

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.errors import DistillError, StoppedError, StorageError
from common.labels.lanes.ray.actors import LabelActor, QuotaKeeper
from common.labels.lanes.ray.cluster import check_ray, end_ray, start_ray
from common.quota.protocol import Snapshot
from common.quota.quota import Quota
from common.records import EXAMPLE_SCHEMA, Example
from common.run.lock import RunLock
from common.settings import Settings
from common.signals import noting_signals
from common.tasks.model import Task
from common.teacher.replies import Reply

_BLOCK_ROWS = 256
_POLL_SECONDS = 0.25
_PATIENCE_SECONDS = 30.0
"""When the quota's actor does not answer for so long, Ray has died without saying so."""
_MOST_RESTARTS = 10
"""Of one actor, whose process or node died. By default Ray has no end of it."""
_REFUSED_DRAIN_SECONDS = 3.0
"""After a refusal, how long the calls in flight may take to end."""

log = logging.getLogger(__name__)


def label_on_ray(
    settings: Settings,
    task: Task,
    url: str,
    examples: list[Example],
    known: dict[str, Reply],
    quota: Quota,
    lock: RunLock,
    watch: Callable[[Snapshot], None],
) -> tuple[list[pa.Table], Snapshot]:
    """Labels examples by actors on Ray; gives their rows, in no order, and what it took.

    `watch` is called a few times a second with the state. If the job is to stop, nothing is
    called any more, and what is in flight is journaled first.

    Raises:
        DistillError: as an actor met it; or the run is no longer the lock's.
    """
    with noting_signals() as signals:
        rows: _Rows | None = None
        try:
            start_ray(settings.label.dashboard_host, signals.check)
            signals.check()
            concurrency, lost = settings.teacher.max_concurrency, 0
            lock.risk(concurrency)

            def check() -> None:
                signals.check()
                lock.check()
                check_ray()

            def look(snapshot: Snapshot) -> None:
                nonlocal lost
                if snapshot.lost_calls > lost:
                    lost = snapshot.lost_calls
                    lock.risk(concurrency, lost)
                snapshot.storage_error = snapshot.storage_error or lock.storage_error
                watch(snapshot)

            keeper = _start_keeper(quota)
            rows = _Rows(_make_dataset(settings, task, url, examples, known, keeper))
            in_flight = concurrency
            try:
                labeled = _collect(rows, keeper, lock, check, look)
                in_flight = 0
                return labeled
            except StoppedError:
                in_flight = _drain(keeper, settings.label.drain_seconds, concurrency)
                raise
            except (DistillError, ray.exceptions.RayError):
                in_flight = _drain(keeper, _REFUSED_DRAIN_SECONDS, concurrency)
                raise
            finally:
                # If that fails, the file tells of more calls than there are.
                with contextlib.suppress(StorageError):
                    lock.risk(in_flight, lost)
        except ray.exceptions.RayError as error:
            *_, cause = f"{type(error).__name__}: {error}".strip().splitlines()
            raise DistillError(f"Ray: {cause[:350]}; run again") from None
        finally:
            end_ray(can_shut_down=rows is None or rows.end(_REFUSED_DRAIN_SECONDS))


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


def _make_dataset(
    settings: Settings,
    task: Task,
    url: str,
    examples: list[Example],
    known: dict[str, Reply],
    keeper: Any,
) -> "ray.data.Dataset":  # quoted: Ray imports it late, when its log level is set
    actors = min(settings.label.actors, settings.teacher.max_concurrency)
    has_key = bool(settings.teacher.api_key.get_secret_value())
    return ray.data.from_arrow(_make_blocks(examples)).map_batches(
        LabelActor,
        fn_constructor_args=(settings.for_workers(), task, url, keeper, ray.put(known), has_key),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=8,
            max_concurrent_calls_per_actor=8,
        ),
        num_cpus=0.1,
        max_restarts=_MOST_RESTARTS,
    )


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


def _collect(
    rows: _Rows,
    keeper: Any,
    lock: RunLock,
    check: Callable[[], None],
    watch: Callable[[Snapshot], None],
) -> tuple[list[pa.Table], Snapshot]:
    tables: list[pa.Table] = []
    is_over = False
    while True:
        check()
        snapshot = _look(keeper, lock, check)
        watch(snapshot)
        if snapshot.failure:
            raise snapshot.failure
        if is_over:
            return tables, snapshot
        with contextlib.suppress(queue.Empty):
            batch = rows.get(_POLL_SECONDS)
            if batch is None:
                is_over = True
            else:
                tables.append(batch)


def _look(keeper: Any, lock: RunLock, check: Callable[[], None]) -> Snapshot:
    """The state of the job. While it does not come, `check` is called, and may raise."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    coming = keeper.snapshot.remote(lock.is_held)
    while True:
        try:
            snapshot: Snapshot = ray.get(coming, timeout=_POLL_SECONDS)
            return snapshot
        except ray.exceptions.GetTimeoutError:
            if time.monotonic() > deadline:
                raise
            check()


def _drain(keeper: Any, seconds: float, concurrency: int) -> int:
    """Waits until no call is in flight, at most for `seconds`; gives how many are lost."""
    deadline = time.monotonic() + seconds
    in_flight = concurrency
    try:
        stopping = keeper.stop.remote(DistillError("the job is stopping"))
        ray.get(stopping, timeout=_REFUSED_DRAIN_SECONDS)
        while time.monotonic() < deadline:
            snapshot = ray.get(keeper.snapshot.remote(), timeout=_REFUSED_DRAIN_SECONDS)
            in_flight = snapshot.in_flight
            if not in_flight:
                return 0
            time.sleep(_POLL_SECONDS / 5)
        log.warning("labels: calls were still in flight after %g s, and are lost", seconds)
    except ray.exceptions.RayError:  # without the quota, actors end what they have in flight
        time.sleep(max(0.0, min(deadline - time.monotonic(), _REFUSED_DRAIN_SECONDS)))
    return in_flight


def _make_blocks(examples: list[Example]) -> list[pa.Table]:
    """Small blocks, for Ray works on one block at a time and would make only one of few rows."""
    table = pa.Table.from_pylist([vars(e) for e in examples], schema=EXAMPLE_SCHEMA)
    return [table.slice(at, _BLOCK_ROWS) for at in range(0, len(examples), _BLOCK_ROWS)]
