"""Fans examples out to actors with Ray Data, on this machine or on the cluster of RAY_ADDRESS."""

import asyncio
import atexit
import contextlib
import logging
import os
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray._private import auto_init_hook
from ray.util.metrics import Counter, Gauge

from common import errors
from common.errors import DistillError, StoppedError, StorageError
from common.labeler import Labeler
from common.ledger import read_answered
from common.lock import RunLock
from common.protocol import Lease, Report, Snapshot, Totals
from common.quota import Quota
from common.records import EXAMPLE_SCHEMA, Example, make_label_table
from common.replies import Reply
from common.settings import Settings
from common.signals import STOP_SIGNALS, noting_signals
from common.storage import RunStorage
from common.tasks import Task

_BLOCK_ROWS = 256
_POLL_SECONDS = 0.25
_OWNER_SILENCE_SECONDS = 5.0
"""A driver that is not heard of for so long is dead; calls without it would be lost on the next."""
_PATIENCE_SECONDS = 8.0
"""When the quota's actor does not answer for so long, Ray has died without saying so."""
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
            _start_ray()
            signals.check()
            concurrency, lost = settings.teacher.max_concurrency, 0
            lock.risk(concurrency)

            def look(snapshot: Snapshot) -> None:
                nonlocal lost
                signals.check()
                lock.check()
                _check_ray()
                if snapshot.lost_calls > lost:
                    lost = snapshot.lost_calls
                    lock.risk(concurrency, lost)
                snapshot.trouble = snapshot.trouble or lock.trouble
                watch(snapshot)

            name = f"distill-quota-{uuid.uuid4().hex[:8]}"
            keeper = ray.remote(QuotaKeeper).options(name=name, num_cpus=0).remote(quota)
            rows = _Rows(_make_dataset(settings, task, url, examples, known, keeper))
            in_flight = concurrency
            try:
                labeled = _collect(rows, keeper, lock, look)
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
            reason = (str(error).splitlines() or [""])[0]
            raise DistillError(f"Ray: {type(error).__name__}: {reason}; run again") from None
        finally:
            _end_ray(rows)


def _make_dataset(
    settings: Settings,
    task: Task,
    url: str,
    examples: list[Example],
    known: dict[str, Reply],
    keeper: Any,
) -> "ray.data.Dataset":  # quoted: Ray imports it late, when its log level is set
    actors = min(settings.label.actors, settings.teacher.max_concurrency)
    return ray.data.from_arrow(_make_blocks(examples)).map_batches(
        LabelActor,
        fn_constructor_args=(settings, task, url, keeper, ray.put(known)),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=8,
            max_concurrent_calls_per_actor=8,
        ),
        num_cpus=0.1,
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
    rows: _Rows, keeper: Any, lock: RunLock, watch: Callable[[Snapshot], None]
) -> tuple[list[pa.Table], Snapshot]:
    tables: list[pa.Table] = []
    is_over = False
    while True:
        snapshot: Snapshot = ray.get(
            keeper.snapshot.remote(lock.is_sure), timeout=_PATIENCE_SECONDS
        )
        watch(snapshot)
        if snapshot.failure:
            name, message = snapshot.failure
            raise getattr(errors, name)(message)
        if is_over:
            return tables, snapshot
        with contextlib.suppress(queue.Empty):
            batch = rows.get(_POLL_SECONDS)
            if batch is None:
                is_over = True
            else:
                tables.append(batch)


def _drain(keeper: Any, seconds: float, concurrency: int) -> int:
    """Waits until no call is in flight, at most for `seconds`; gives how many are lost."""
    deadline = time.monotonic() + seconds
    in_flight = concurrency
    try:
        stopping = keeper.stop.remote(("DistillError", "the job is stopping"))
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


class QuotaKeeper:
    """The job's quota, where all actors reach it; its figures also as Ray metrics."""

    def __init__(self, quota: Quota) -> None:
        """Goes on with what the quota knows."""
        quota.expect_owner(_OWNER_SILENCE_SECONDS)
        self._quota = quota
        self._begun: set[str] = set()
        self._counters = {
            name: Counter(f"distill_label_{name}", f"{name} of the label job")
            for name in Totals.__slots__
        }
        self._in_flight = Gauge("distill_label_in_flight", "calls in flight")
        self._told = Totals()

    def renew(self, name: str, report: Report) -> Lease:
        """See `Quota.renew`."""
        return self._quota.renew(name, report)

    def snapshot(self, may_start: bool = True) -> Snapshot:
        """See `Quota.snapshot`."""
        snapshot = self._quota.snapshot(may_start)
        for name, counter in self._counters.items():
            if (more := getattr(snapshot.totals, name) - getattr(self._told, name)) > 0:
                counter.inc(more)
        self._told = snapshot.totals
        self._in_flight.set(snapshot.in_flight)
        return snapshot

    def stop(self, failure: tuple[str, str]) -> None:
        """See `Quota.stop`."""
        self._quota.stop(failure)

    def begin(self, block: str) -> bool:
        """Notes that a block is begun; whether it was begun before, by a worker that is gone."""
        was_begun = block in self._begun
        self._begun.add(block)
        return was_begun


class LabelActor:
    """One worker: a labeler with its client, in the actor's event loop."""

    def __init__(self, settings: Settings, task: Task, url: str, keeper: Any, known: Any) -> None:
        """See `Labeler`; `keeper` is the job's, `known` a reference to a dictionary."""
        self._settings, self._task, self._url = settings, task, url
        self._keeper, self._known = keeper, known
        self._opening: asyncio.Task[Labeler] | None = None

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Labels a block. If the job is to stop, the driver hears of it from the quota."""
        self._opening = self._opening or asyncio.create_task(self._open())
        labeler = await self._opening
        examples = [Example(**row) for row in batch.to_pylist()]
        if await self._keeper.begin.remote(examples[0].id):
            labeler.learn(await asyncio.to_thread(read_answered, RunStorage(self._settings)))
        try:
            return make_label_table(await labeler.label(examples))
        except DistillError:
            return make_label_table([])

    async def _open(self) -> Labeler:
        async def renew(name: str, report: Report) -> Lease:
            lease: Lease = await self._keeper.renew.remote(name, report)
            return lease

        return Labeler(self._settings, self._task, self._url, renew, await self._known)


@contextlib.contextmanager
def _keeping_handlers() -> Iterator[None]:
    """Ray sets signal handlers as it starts, which end the process in ways of their own."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    utils = ray._private.utils
    set_handler, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        for number, handler in handlers.items():
            signal.signal(number, handler)  # instead of one of Ray's that ends with a core dump


def _start_ray() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    auto_init_hook.enable_auto_connect = False  # the data set's thread must not start another Ray
    local: dict[str, Any] = (
        {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, "address": "local"}
    )
    with _keeping_handlers():
        ray.init(log_to_driver=False, logging_level="ERROR", **local)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _check_ray() -> None:
    """Raises a DistillError if a process of Ray's has died: soon it would end this one, too."""
    node = ray._private.worker._global_node
    dead = [name for name, _ in node.dead_processes()] if node else []
    if dead:
        raise DistillError(f"Ray's {' and '.join(dead)} died; run again")


def _end_ray(rows: _Rows | None) -> None:
    for name in ("ray", "ray.data"):  # they complain of what ends before its time
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if rows is None or rows.end(_REFUSED_DRAIN_SECONDS):
        ray.shutdown()
    else:  # a thread inside Ray while that is shut down brings the process down
        atexit.unregister(ray._private.worker.shutdown)


def _make_blocks(examples: list[Example]) -> list[pa.Table]:
    """Small blocks, for Ray works on one block at a time and would make only one of few rows."""
    table = pa.Table.from_pylist([vars(e) for e in examples], schema=EXAMPLE_SCHEMA)
    return [table.slice(at, _BLOCK_ROWS) for at in range(0, len(examples), _BLOCK_ROWS)]
