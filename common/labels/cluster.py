"""Starts Ray on this machine, or reaches the cluster of RAY_ADDRESS, and leaves it again."""

import atexit
import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import auto_init_hook

from common.errors import DistillError
from common.signals import STOP_SIGNALS


def start_ray(dashboard_host: str | None = None) -> None:
    """Connects to RAY_ADDRESS, or starts Ray here; signal handlers stay as they were."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    auto_init_hook.enable_auto_connect = False  # the data set's thread must not start another Ray
    local: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        local = {"address": "local", "include_dashboard": dashboard_host is not None}
        local |= {"dashboard_host": dashboard_host} if dashboard_host else {}
    try:
        with _keeping_handlers():
            ray.init(log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # Ray raises plain ones
        address = os.environ.get("RAY_ADDRESS")
        what = f"RAY_ADDRESS={address!r} cannot be reached" if address else "Ray did not start"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DistillError(f"{what}: {reason}; run again") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


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
