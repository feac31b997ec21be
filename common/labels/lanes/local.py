"""The lane in this process: one worker in a thread, without Ray, for thousands of examples."""

import asyncio
import threading

import pyarrow as pa

from common.errors import DistillError
from common.labels.lane import Lane, Work
from common.labels.worker import Worker
from common.quota.protocol import Lease, Snapshot, Tally
from common.records import make_label_table


class LocalLane(Lane):
    """All rows arrive at once, as one table."""

    def open(self) -> None:
        self._guard = threading.Lock()  # the quota is shared with the worker's thread

    def start(self, work: Work) -> None:
        self._work, self._quota = work, work.quota
        self._quota.dead_seconds = float("inf")  # its one worker lives and dies with it
        self._is_stopping = False
        self._thread = self.deliver(lambda: [asyncio.run(self._label())])

    async def _label(self) -> pa.Table:
        worker = Worker(self._work.run, self._work.url, self._renew, self._work.replies)
        try:
            examples = [example for group in self._work.examples.read() for example in group]
            return make_label_table([o.row for o in await worker.label(examples)])
        finally:
            await worker.close()

    async def _renew(self, name: str, tally: Tally) -> Lease:
        with self._guard:
            return self._quota.renew(name, tally)

    def snapshot(self, may_start: bool) -> Snapshot:
        with self._guard:
            snapshot = self._quota.snapshot(may_start)
        if self._is_stopping and self._thread.is_alive():  # a call may have started since
            snapshot.in_flight = max(1, snapshot.in_flight)
        return snapshot

    def stop(self, reason: DistillError) -> None:
        with self._guard:
            self._quota.stop(reason)
        self._is_stopping = True

    def close(self) -> None:
        """The thread ends with its last call, or with this process."""
