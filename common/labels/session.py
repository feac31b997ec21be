"""A session: one labelling, from opening the teacher to the last durable reply.

The label job and the evaluation's teacher both run one, on different lanes.
"""

import asyncio
import logging
import os
import queue
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import pyarrow as pa

from common.builtin.teacher import running_stand_in
from common.errors import DistillError, StoppedError
from common.labels.crash_record import InFlightRecord
from common.labels.endpoints import measure_costs
from common.labels.label_row import make_label
from common.labels.lane import Lane, Work
from common.labels.parts import Parts
from common.labels.progress import Progress, summarize_calls
from common.labels.resume import Known
from common.quota.health import Health
from common.quota.protocol import Snapshot
from common.quota.quota import Quota
from common.records import make_label_table
from common.run.lock import RunLock
from common.run.run import Run
from common.run.steps import LabelSummary
from common.sections import BUILTIN
from common.settings import Settings
from common.signals import deferring_signals
from common.teacher.connection import Connection
from common.teacher.dialect import describe
from common.teacher.journal import FOLDER as JOURNAL
from common.teacher.listing import find_end

_POLL_SECONDS = 0.25
_BLIND_DRAIN_SECONDS = 3.0
"""How long the calls in flight may take to end where the quota does not answer."""

log = logging.getLogger(__name__)


class Session:
    """Labels the examples that are missing in what is `known`."""

    def __init__(self, run: Run, lock: RunLock, known: Known, parts: Parts | None = None) -> None:
        """A lane may write what is finished to `parts`."""
        self._run, self._lock, self._known, self._parts = run, lock, known, parts
        is_capped = run.settings.label.max_cost_usd is not None
        self._spent_usd = known.cost_usd + (measure_costs(run) if is_capped else 0.0)
        self._quota = make_quota(run, self._spent_usd, known.has_answer)
        self._in_flight = InFlightRecord(run.storage)
        self._concurrency, self._lost = run.settings.teacher.max_concurrency, 0
        self._adaptations: frozenset[str] = frozenset()

    def ask(self, make_lane: Callable[[], Lane], name: str) -> tuple[list[pa.Table], LabelSummary]:
        """Labels the missing examples.

        Returns the rows that are in no part, unordered, and the calls' figures. `name` is for the
        progress. Before a job stops, its calls in flight are drained.

        Raises:
            SettingsError: the cost is capped, and neither a price nor the replies tell it.
            DistillError: the teacher cannot be reached or refuses for good, the cap is reached, the
                lock is lost, or the lane has failed.
        """
        run, known = self._run, self._known
        is_blank = known.missing.mark_blank()
        blank = [
            make_label(example, [], run.task)
            for group in known.missing.select(is_blank).read()
            for example in group
        ]
        asked = known.missing.select(~is_blank)
        if not len(asked):
            return [make_label_table(blank)], {}
        progress = Progress(len(asked) * run.settings.label.samples, run.price is not None, name)
        with run.storage.removing_empty_folder(JOURNAL), open_teacher(run.settings) as url:
            check_teacher(run, url)
            known, quota = self._known, self._quota
            work = Work(run, url, asked, known.replies, quota, self._spent_usd, self._parts)
            with deferring_signals() as signals, opening(make_lane()) as lane:
                signals.check()
                tables, snapshot = self._label(lane, work, signals.check, progress)
        progress.show(snapshot, is_last=True)
        has_price = run.price is not None or snapshot.totals.cost_usd > 0
        summary = summarize_calls(snapshot, self._concurrency, has_price)
        return [make_label_table(blank), *tables], summary

    def _label(
        self, lane: Lane, work: Work, check: Callable[[], None], progress: Progress
    ) -> tuple[list[pa.Table], Snapshot]:
        in_flight = self._concurrency if lane.loses_calls else 0
        self._in_flight.write(in_flight)
        try:
            lane.start(work)
        except BaseException:
            self._in_flight.write(0)
            raise
        try:
            labelled = self._collect(lane, check, progress)
            in_flight = 0
            return labelled
        except StoppedError:
            in_flight = self._drain(lane, self._run.settings.label.drain_seconds)
            raise
        except DistillError:
            seconds = lane.refusal_drain_seconds or self._run.settings.teacher.timeout_seconds
            in_flight = self._drain(lane, seconds)
            raise
        finally:
            # If that fails, the next job charges too many calls rather than too few. After a
            # takeover the other job has charged them.
            with suppress(DistillError):
                self._lock.check()
                self._in_flight.write(in_flight, self._lost)

    def _collect(
        self, lane: Lane, check: Callable[[], None], progress: Progress
    ) -> tuple[list[pa.Table], Snapshot]:
        tables: list[pa.Table] = []
        is_over = False
        while True:
            check()
            self._lock.check()
            snapshot = lane.snapshot(self._lock.is_held)
            if snapshot is None:
                continue
            self._note(snapshot)
            progress.show(snapshot)
            if snapshot.failure:
                raise snapshot.failure
            if is_over and snapshot.refusal:
                raise snapshot.refusal
            if is_over:
                return tables, snapshot
            with suppress(queue.Empty):
                table = lane.take(_POLL_SECONDS)
                if table is None:
                    is_over = True
                elif table.num_rows:
                    tables.append(table)

    def _note(self, snapshot: Snapshot) -> None:
        """Records the calls of crashed workers, and says what requests have become."""
        if snapshot.lost_calls > self._lost:
            self._lost = snapshot.lost_calls
            self._in_flight.write(self._concurrency, self._lost)
        if snapshot.adaptations != self._adaptations:
            self._adaptations = snapshot.adaptations
            log.info("the teacher takes other requests: %s", ", ".join(describe(self._adaptations)))
        snapshot.storage_error = snapshot.storage_error or self._lock.storage_error

    def _drain(self, lane: Lane, seconds: float) -> int:
        """Waits up to `seconds` until no call is in flight; returns how many still are."""
        deadline = time.monotonic() + seconds
        in_flight = self._concurrency
        try:
            lane.stop(DistillError("the job is stopping"))
            while time.monotonic() < deadline:
                snapshot = lane.snapshot(may_start=False)
                if snapshot is None:
                    continue
                if not (in_flight := snapshot.in_flight):
                    return 0
                time.sleep(_POLL_SECONDS / 5)
            log.warning("labels: %d calls still in flight after %g s are lost", in_flight, seconds)
        except DistillError:  # the quota is gone, and workers complete their calls
            time.sleep(max(0.0, min(deadline - time.monotonic(), _BLIND_DRAIN_SECONDS)))
        return in_flight


@contextmanager
def opening(lane: Lane) -> Iterator[Lane]:
    """Opens a lane, and closes it at the end."""
    try:
        lane.open()
        yield lane
    finally:
        lane.close()


def make_quota(run: Run, spent_usd: float, has_succeeded: bool = False) -> Quota:
    """A session's quota; the first reply has to tell its cost if that is capped without a price."""
    teacher, cap = run.settings.teacher, run.settings.label.max_cost_usd
    return Quota(
        teacher.requests_per_minute,
        teacher.tokens_per_minute,
        teacher.max_concurrency,
        cap,
        spent_usd,
        sends_scout=True,
        has_price=run.price is not None,
        health=Health(has_succeeded, teacher.startup_seconds, teacher.outage_seconds),
    )


def check_teacher(run: Run, url: str) -> None:
    """Waits for the server, and warns of a model that ends soon. Raises as `Connection.check`."""

    async def check() -> str:
        connection = Connection(run.settings.teacher, url)
        try:
            return await connection.check()
        finally:
            await connection.close()

    model = run.settings.teacher.model
    if end := find_end(asyncio.run(check()), model):
        log.warning("the teacher's API says that the model %r ends: %s", model, end)


@contextmanager
def open_teacher(settings: Settings) -> Iterator[str]:
    """The teacher's URL; the stand-in runs while the block does."""
    is_stand_in = settings.teacher.base_url == BUILTIN
    host = _find_own_address() if os.environ.get("RAY_ADDRESS") else "127.0.0.1"
    with running_stand_in(host) if is_stand_in else nullcontext(settings.teacher.base_url) as url:
        yield url


def _find_own_address() -> str:
    """The address of this machine for other nodes of a cluster."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, only chooses an interface
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
