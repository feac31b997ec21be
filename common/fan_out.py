"""Fans examples out to actors with Ray Data, on this machine or on the cluster of RAY_ADDRESS."""

import logging
import os
import signal
import time
from typing import Any

import pyarrow as pa
import ray

from common import errors
from common.errors import DistillError
from common.labeler import Labeler
from common.records import EXAMPLE_SCHEMA, Example, LabelRow, make_label_table
from common.settings import Settings
from common.tasks import Task

_BLOCK_ROWS = 256
_LOG_SECONDS = 5
_REFUSED = "refused"
"""The status of a row on its way to the driver that stops the job."""

log = logging.getLogger(__name__)


def label_on_ray(
    settings: Settings, task: Task, url: str, examples: list[Example]
) -> dict[str, LabelRow]:
    """Labels examples by actors on Ray; gives the rows by id.

    Raises:
        DistillError: as an actor met it.
    """
    _start_ray()
    actors = min(settings.label.actors, settings.teacher.max_concurrency)
    dataset = ray.data.from_arrow(_make_blocks(examples)).map_batches(
        LabelActor,
        fn_constructor_args=(settings, task, url, 1 / actors),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=8,
            max_concurrent_calls_per_actor=8,
        ),
        num_cpus=0.1,
    )
    rows: dict[str, LabelRow] = {}
    started = logged = time.monotonic()
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.to_pylist():
                if row["status"] == _REFUSED:
                    raise getattr(errors, row["error"])(row["message"])
                rows[row["id"]] = LabelRow(**row)
            if len(rows) == len(examples) or time.monotonic() - logged > _LOG_SECONDS:
                logged = time.monotonic()
                rate = len(rows) / (logged - started)
                log.info("labels: %d of %d, %.0f rows/s", len(rows), len(examples), rate)
    finally:
        ray.shutdown()
    return rows


class LabelActor:
    """One worker: a labeler with its client, in the actor's event loop."""

    def __init__(self, settings: Settings, task: Task, url: str, share: float) -> None:
        """See `Labeler`."""
        self._make = lambda: Labeler(settings, task, url, share)
        self._labeler: Labeler | None = None

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Labels a block. A refusal becomes a row, which the driver turns into an error again."""
        self._labeler = self._labeler or self._make()
        try:
            rows = await self._labeler.label([Example(**row) for row in batch.to_pylist()])
        except DistillError as error:
            name = type(error).__name__
            rows = [LabelRow("", "", _REFUSED, error=name, message=str(error))]
        return make_label_table(rows)


def _start_ray() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level="ERROR", **local)
    signal.signal(signal.SIGTERM, handler)  # Ray sets one of its own, which ends with a core dump
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _make_blocks(examples: list[Example]) -> list[pa.Table]:
    """Small blocks, for Ray works on one block at a time and would make only one of few rows."""
    table = pa.Table.from_pylist([vars(e) for e in examples], schema=EXAMPLE_SCHEMA)
    return [table.slice(at, _BLOCK_ROWS) for at in range(0, len(examples), _BLOCK_ROWS)]
