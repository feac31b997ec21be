"""The lane in this process: one worker in a thread, without Ray, for some thousand examples."""

import asyncio
import queue
import threading

import pyarrow as pa

from common.errors import DistillError
from common.labels.session import Work
from common.labels.worker import Worker
from common.quota.protocol import Lease, Snapshot, Tally
from common.records import make_label_table


class LocalLane:
    """See `Lane`; all rows arrive at once, as one table."""

    def __init__(self) -> None:
        """Starts nothing."""
        self._arrived: queue.Queue[pa.Table | BaseException | None] = queue.Queue()
        self._guard = threading.Lock()  # the quota is used by the worker's thread and by this one

    def open(self) -> None:
        """See `Lane.open`."""

    def start(self, work: Work) -> None:
        """See `Lane.start`."""
        self._work, self._quota = work, work.quota
        threading.Thread(target=self._run, daemon=True).start()  # signals are for the main thread

    def _run(self) -> None:
        try:
            self._arrived.put(asyncio.run(self._label()))
            self._arrived.put(None)
        except BaseException as error:
            self._arrived.put(error)

    async def _label(self) -> pa.Table:
        worker = Worker(self._work.run, self._work.url, self._renew, self._work.replies)
        try:
            return make_label_table(await worker.label(self._work.examples))
        finally:
            await worker.close()

    async def _renew(self, name: str, tally: Tally) -> Lease:
        with self._guard:
            return self._quota.renew(name, tally)

    def take(self, seconds: float) -> pa.Table | None:
        """See `Lane.take`."""
        arrived = self._arrived.get(timeout=seconds)
        if isinstance(arrived, BaseException):
            raise arrived
        return arrived

    def snapshot(self, may_start: bool) -> Snapshot:
        """See `Lane.snapshot`."""
        with self._guard:
            return self._quota.snapshot(may_start)

    def stop(self, reason: DistillError) -> None:
        """See `Lane.stop`."""
        with self._guard:
            self._quota.stop(reason)

    def close(self) -> None:
        """See `Lane.close`: the thread ends with its last call, or with this process."""
