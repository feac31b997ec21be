"""The keeper of a session's quota, an actor on Ray; it imports little: all calls wait for it."""

import time

from ray.util.metrics import Counter, Gauge

from common.errors import DistillError
from common.quota.protocol import Lease, Snapshot, Tally, Totals
from common.quota.quota import Quota
from common.signals import die_with_parent

_READING_SECONDS = 300.0
"""How long a worker may read the journal between its first block and its first call."""
_DRIVER_TIMEOUT_SECONDS = 5.0
"""A driver without a heartbeat for this long has crashed, and no call may start."""


class QuotaKeeper:
    """The job's quota as an actor, with its figures as Ray metrics."""

    def __init__(self, quota: Quota, rows: int) -> None:
        """`rows` is the number of examples in all blocks."""
        die_with_parent()
        quota.require_heartbeat(_DRIVER_TIMEOUT_SECONDS)
        self._quota = quota
        self._started_blocks: set[str] = set()
        self._rows_to_start = rows
        self._started_at = float("-inf")
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
        snapshot.workers += time.monotonic() < self._started_at + _READING_SECONDS
        for name, counter in self._counters.items():
            if (more := getattr(snapshot.totals, name) - getattr(self._reported, name)) > 0:
                counter.inc(more)
        self._reported = snapshot.totals
        self._in_flight.set(snapshot.in_flight)
        return snapshot

    def stop(self, failure: DistillError) -> None:
        """See `Quota.stop`."""
        self._quota.stop(failure)

    def start_block(self, block: str, rows: int) -> bool:
        """Records the start of a block; whether a crashed worker had started it before."""
        is_retry, self._started_at = block in self._started_blocks, time.monotonic()
        if not is_retry:
            self._rows_to_start -= rows
        self._started_blocks.add(block)
        return is_retry

    def has_started_all(self) -> bool:
        """Whether no block is left to start."""
        return self._rows_to_start <= 0
