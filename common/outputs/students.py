"""Students on Ray answer blocks, one per GPU, on one machine or a cluster."""

import contextlib
import logging
import os
import queue
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from common import errors
from common.arrivals import Arrivals
from common.errors import DistillError, explain_memory, is_memory_error
from common.evaluation.confidence import Calibration
from common.labels.lanes.ray.cluster import check_ray, end_ray, start_ray
from common.labels.lanes.ray.memory import MemoryWatch
from common.outputs.inputs import Block, Inputs
from common.outputs.parts import OutputParts
from common.run.lock import RunLock
from common.run.run import Run
from common.signals import deferring_signals

_POLL_SECONDS, _LOG_SECONDS, _END_SECONDS = 0.25, 10.0, 3.0
_NODE_SECONDS = 600.0
"""How long a cluster may take to start a node."""
_RESTARTS = 3
"""How often a student's process may die."""
_BLOCK_BYTES = 64 << 10
"""Ray gathers rows, each a whole block of ours, up to this size."""
log = logging.getLogger(__name__)


def answer_blocks(
    run: Run,
    inputs: Inputs,
    blocks: Sequence[Block],
    parts: OutputParts,
    calibration: Calibration | None,
    lock: RunLock,
) -> None:
    """Writes the parts of some blocks.

    Raises:
        InputError: the source or the student cannot be read.
        SettingsError: memory is too small, or a required GPU is missing.
        DistillError: Ray has failed, or the lock is lost.
    """
    with deferring_signals() as signals:

        def check() -> None:
            signals.check()
            lock.check()
            check_ray()

        arrivals: Arrivals[pa.Table] = Arrivals()
        thread = None
        try:
            start_ray()
            _wait_for_nodes(run.settings.student.require_gpu, check)
            batches = _make_dataset(run, inputs, blocks, parts, calibration).iter_batches
            options = {"batch_size": None, "batch_format": "pyarrow"}
            thread = arrivals.produce(lambda: batches(**options))
            with _converting_errors():
                _collect(arrivals, sum(block.rows for block in blocks), check)
        finally:
            if thread is not None:
                thread.join(_END_SECONDS)
            end_ray(can_shut_down=not (thread and thread.is_alive()))


def _wait_for_nodes(require_gpu: bool, check: Callable[[], None]) -> None:
    """Waits for a cluster's first node with a CPU, or with a GPU if one is required.

    Raises a DistillError if none comes.
    """
    import ray

    needed = "GPU" if require_gpu else "CPU"
    deadline = time.monotonic() + _NODE_SECONDS
    while os.environ.get("RAY_ADDRESS") and not ray.cluster_resources().get(needed):
        if deadline - time.monotonic() > _NODE_SECONDS - _POLL_SECONDS:
            log.info("predict: waiting for a node of the cluster that has a %s", needed)
        if time.monotonic() > deadline:
            raise DistillError(
                f"no node of the Ray cluster has offered a {needed} for {_NODE_SECONDS:g} s; add "
                "one, and run again"
            )
        check()
        time.sleep(_POLL_SECONDS)


def _make_dataset(
    run: Run,
    inputs: Inputs,
    blocks: Sequence[Block],
    parts: OutputParts,
    calibration: Calibration | None,
) -> Any:
    import ray

    from common.outputs.actor import StudentActor
    from common.outputs.source import InputSource

    actors, resources = _plan(run.settings.predict.actors)
    log.info("predict: %d student%s at work", actors, "s" if actors > 1 else "")
    packed = run.pack()
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = _BLOCK_BYTES
    source = InputSource(inputs, blocks, packed)
    rows = ray.data.read_datasource(source, num_cpus=0, concurrency=2)
    with warnings.catch_warnings():  # Ray 2.60 has no other way to say how often to restart
        warnings.simplefilter("ignore")
        return rows.map_batches(
            StudentActor,
            fn_constructor_args=(packed, parts.folder, parts.fingerprint, calibration),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
            **resources,
        )


def _plan(actors: int) -> tuple[int, dict[str, float]]:
    """How many students, and what each of them gets of the cluster."""
    import ray

    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    if gpus:
        number = actors or gpus
        return number, {"num_gpus": gpus / number if number > gpus else 1, "num_cpus": 0}
    alive = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    nodes = [int(cpus) for cpus in alive if cpus >= 1] or [1]
    number = actors or len(nodes)
    return number, {"num_cpus": share_cpus(nodes, number)}


def share_cpus(nodes: Sequence[int], students: int) -> int:
    """The most CPUs for each of so many students on nodes with these CPUs, at least 1."""
    fitting = (n for n in range(max(nodes), 1, -1) if sum(cpus // n for cpus in nodes) >= students)
    return next(fitting, 1)


def _collect(arrivals: Arrivals[pa.Table], rows: int, check: Callable[[], None]) -> None:
    """Waits for the results of all rows. Raises the error that a student ends with."""
    done = 0
    started = logged = time.monotonic()
    while True:
        check()
        try:
            results = arrivals.take(_POLL_SECONDS)
        except queue.Empty:
            continue
        if results is None:
            break
        for result in results.to_pylist():
            if result["failure"]:
                raise getattr(errors, result["failure"])(result["message"])
            done += result["rows"]
        now = time.monotonic()
        if now > logged + _LOG_SECONDS and done:
            logged, rate = now, done / (now - started)
            left = (rows - done) / rate
            log.info("predict: %d of %d rows, %.1f rows/s, %.0f s left", done, rows, rate, left)
    if done < rows:
        raise DistillError(f"{rows - done} of {rows} rows were lost; run again")


@contextlib.contextmanager
def _converting_errors() -> Iterator[None]:
    """Converts the errors of Ray and of Ray Data."""
    try:
        yield
    except DistillError:
        raise
    except Exception as error:  # of many types
        raise _explain(error) from None


def _explain(error: Exception) -> DistillError:
    import ray

    from common.outputs.actor import MEMORY_ADVICE

    causes: list[BaseException] = [error]
    while (cause := getattr(causes[-1], "cause", None) or causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, DistillError):
            return cause
    texts = " ".join(str(cause) for cause in causes)
    if used_up := MemoryWatch("DISTILL_PREDICT__ACTORS").explain(texts):
        return used_up
    for cause in causes:
        if isinstance(cause, Exception) and is_memory_error(cause):
            return explain_memory(cause, MEMORY_ADVICE)
    reason = " ".join(f"{type(causes[-1]).__name__}: {_cut(causes[-1])}".split())
    if any(isinstance(cause, ray.exceptions.RayActorError) for cause in causes):
        return DistillError(
            f"Ray: a student's process died {_RESTARTS} times: {reason[:300]}; check the memory, "
            "lower DISTILL_PREDICT__ACTORS or DISTILL_EVALUATE__BATCH_TOKENS, and run again"
        )
    return DistillError(f"Ray: {reason[:300]}; run again")


def _cut(error: BaseException) -> str:
    """What an error says, without the traceback that Ray puts behind it."""
    return str(error).partition("traceback:")[0]
