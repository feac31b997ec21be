"""Starts Ray on this machine, or reaches the cluster of RAY_ADDRESS, and leaves it again."""

import atexit
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import auto_init_hook
from ray._private.services import find_gcs_addresses

from common.errors import DistillError, SettingsError
from common.signals import STOP_SIGNALS

_JOIN_SECONDS, _LEAVE_SECONDS = 60.0, 10.0
_nodes: list[subprocess.Popen[bytes]] = []
"""The Ray node that this process has started, to be one of a cluster's."""


def start_ray(dashboard_host: str | None = None) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts Ray here; signal handlers stay.

    A machine that is no node of the cluster becomes one, without CPUs, until `end_ray`.

    Raises:
        SettingsError: a job cannot run over such a RAY_ADDRESS.
        DistillError: Ray does not start, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    auto_init_hook.enable_auto_connect = False  # the data set's thread must not start another Ray
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise SettingsError(
            f"RAY_ADDRESS={address!r}: Ray Data needs the cluster's own address, such as "
            "head:6379; where only ray:// or http:// is open, use `ray job submit --address "
            "http://head:8265 -- python -m jobs.label`"
        )
    if not address:
        options = {"dashboard_host": dashboard_host} if dashboard_host else {}
        _connect("Ray did not start", address="local", include_dashboard=bool(options), **options)
    else:
        if address != "auto" and not find_gcs_addresses():
            _join(address)
        _connect(_explain(address))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _connect(failure: str, **options: Any) -> None:
    try:
        with _keeping_handlers():
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # Ray raises plain ones
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DistillError(f"{failure}: {reason}; run again") from None


def _explain(address: str) -> str:
    return f"RAY_ADDRESS={address!r} cannot be reached"


def _join(address: str) -> None:
    """Makes this machine, where no Ray runs, a node of the cluster, until `end_ray`."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    node = subprocess.Popen(
        [*command, f"--address={address}", "--num-cpus=0", "--disable-usage-stats"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the job, which needs the node to its end
    )
    _nodes.append(node)
    deadline = time.monotonic() + _JOIN_SECONDS
    while not find_gcs_addresses():
        if node.poll() is not None or time.monotonic() > deadline:
            _leave()
            raise DistillError(f"{_explain(address)}; run again when the cluster is up")
        time.sleep(0.2)


def _leave() -> None:
    """Ends the node that was made by `_join`, if any."""
    while _nodes:
        node = _nodes.pop()
        node.terminate()
        try:
            node.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            node.kill()


def check_ray() -> None:
    """Raises a DistillError if a process of Ray's has died: soon it would end this one, too."""
    node = ray._private.worker._global_node
    dead = [name for name, _ in node.dead_processes()] if node else []
    if dead:
        raise DistillError(f"Ray's {' and '.join(dead)} died; run again")


def end_ray(can_shut_down: bool) -> None:
    """Leaves Ray; without a shutdown where a thread is inside it: that would end the process."""
    for name in ("ray", "ray.data"):  # they complain of what ends before its time
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if can_shut_down:
        ray.shutdown()
    else:
        atexit.unregister(ray._private.worker.shutdown)
    _leave()


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
