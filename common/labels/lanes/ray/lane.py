"""The lane over Ray Data: examples fan out to actors, on this machine or on a Ray cluster."""

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.errors import DistillError
from common.labels.lane import Lane, Work
from common.labels.lanes.ray.actors import LabelActor
from common.labels.lanes.ray.cluster import check_ray, end_ray, start_ray
from common.labels.lanes.ray.keeper import QuotaKeeper
from common.labels.lanes.ray.memory import MemoryWatch
from common.quota.protocol import Snapshot
from common.quota.quota import Quota
from common.sections import SECRETS

_POLL_SECONDS = 0.25
_QUOTA_SECONDS = 30.0
"""If the quota's actor does not answer for this long, Ray has crashed."""
_CPU_POLL_SECONDS, _WORKER_SECONDS = 5.0, 300.0
"""How often to look for free CPUs; how long one may be free while no label actor lives.

Beside eight busy processes on two cores, Ray's processes and the actors' imports take a minute.
"""
_MAX_CRASHES_PER_ACTOR = 3
"""How often an actor may crash on average before a call is answered again."""
_END_SECONDS = 3.0
"""How long the dataset may take to end."""


class RayLane(Lane):
    """The actors write all rows into parts."""

    refusal_drain_seconds = 3.0

    def __init__(self, dashboard_host: str | None = None) -> None:
        """`dashboard_host` is the host of Ray's dashboard, if this lane starts Ray."""
        super().__init__()
        self._dashboard_host = dashboard_host
        self._thread: threading.Thread | None = None
        self._pending: Any = None
        self._asked_at = self._worker_at = self._polled_at = time.monotonic()
        self._answered = self._crashes = 0
        self._actor_cpus = 0.0
        self._memory = MemoryWatch("DISTILL_LABEL__ACTORS")

    def open(self) -> None:
        start_ray(self._dashboard_host)

    def start(self, work: Work) -> None:
        with _converting_errors():
            self._keeper = _start_keeper(work.quota, len(work.examples))
            batches = _make_dataset(work, self._keeper).iter_batches
        self._actor_cpus = work.run.settings.label.actor_cpus
        options = {"batch_size": None, "batch_format": "pyarrow"}
        self._max_crashes = _MAX_CRASHES_PER_ACTOR * work.run.settings.label.actors
        self._worker_at = time.monotonic()
        self._thread = self.deliver(lambda: batches(**options))

    def take(self, seconds: float) -> pa.Table | None:
        try:
            with _converting_errors():
                return super().take(seconds)
        except (DistillError, queue.Empty):
            raise
        except Exception as error:
            raise DistillError(f"Ray Data: {type(error).__name__}: {error}") from error

    def snapshot(self, may_start: bool) -> Snapshot | None:
        check_ray()
        with _converting_errors():
            if self._pending is None:
                self._pending = self._keeper.snapshot.remote(may_start)
                self._asked_at = time.monotonic()
            try:
                snapshot: Snapshot = ray.get(self._pending, timeout=_POLL_SECONDS)
            except ray.exceptions.GetTimeoutError:
                if time.monotonic() > self._asked_at + _QUOTA_SECONDS:
                    raise
                return None
            self._pending = None
            self._check_workers(snapshot)
            return snapshot

    def _check_workers(self, snapshot: Snapshot) -> None:
        """Raises a DistillError if actors crash repeatedly: Ray restarts them without a limit."""
        self._memory.look()
        now, answered = time.monotonic(), snapshot.totals.answered
        if answered > self._answered:
            self._answered, self._crashes = answered, snapshot.lost_workers
        if snapshot.workers:
            self._worker_at = now
        elif now > self._polled_at + _CPU_POLL_SECONDS:
            self._polled_at = now
            if ray.available_resources().get("CPU", 0) < self._actor_cpus:
                self._worker_at = now  # they wait for a CPU
        has_none = now > self._worker_at + _WORKER_SECONDS
        crashes = snapshot.lost_workers - self._crashes
        if has_none or crashes > self._max_crashes:
            if used_up := self._memory.explain():
                raise used_up
            state = f"none has run for {_WORKER_SECONDS:.0f} s" if has_none else "in a row"
            raise DistillError(
                f"Ray: label actors crash repeatedly ({crashes} crashes, {state}); "
                "check Ray's logs and the memory, and run again"
            )

    def stop(self, reason: DistillError) -> None:
        with _converting_errors():
            ray.get(self._keeper.stop.remote(reason), timeout=_END_SECONDS)

    def close(self) -> None:
        if self._thread:
            self._thread.join(_END_SECONDS)
        end_ray(can_shut_down=not (self._thread and self._thread.is_alive()))


@contextlib.contextmanager
def _converting_errors() -> Iterator[None]:
    """Converts Ray's errors to a DistillError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        if used_up := MemoryWatch("DISTILL_LABEL__ACTORS").explain(error):
            raise used_up from None
        *_, cause = f"{type(error).__name__}: {error}".strip().splitlines()
        raise DistillError(f"Ray: {cause[:350]}; run again") from None


def _start_keeper(quota: Quota, rows: int) -> Any:
    """Starts the quota's actor on the driver's node, so that no other node's crash ends the job."""
    here = ray.get_runtime_context().get_node_id()
    options = {
        "name": f"distill-quota-{uuid.uuid4().hex[:8]}",
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }
    return ray.remote(QuotaKeeper).options(**options).remote(quota, rows)


def _make_dataset(work: Work, keeper: Any) -> "ray.data.Dataset":
    # The annotation is quoted: Ray imports ray.data late, when its log level is set.
    from common.labels.lanes.ray.source import make_dataset

    settings, packed = work.run.settings, work.run.pack()
    actors = min(settings.label.actors, settings.teacher.max_concurrency)
    needed = [name for name in SECRETS if getattr(settings.teacher, name)]
    known = ray.put(dict(work.replies))
    assert work.parts is not None
    labels = (work.parts.fingerprint, work.parts.session)
    return make_dataset(work.examples, packed).map_batches(
        LabelActor,
        fn_constructor_args=(packed, work.url, keeper, known, needed, labels),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=actors, max_tasks_in_flight_per_actor=8, max_concurrent_calls_per_actor=8
        ),
        num_cpus=settings.label.actor_cpus,
    )
