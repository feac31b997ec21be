"""Starts Ray on this machine, or reaches the cluster of RAY_ADDRESS, and leaves it again."""

import atexit
import contextlib
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import auto_init_hook

from common.errors import DistillError, SettingsError
from common.signals import STOP_SIGNALS

_ANSWER_SECONDS = 10.0
_SUBMIT = "`ray job submit --address http://head:8265 -- python -m jobs.label`"


def start_ray(dashboard_host: str | None = None) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts Ray here; signal handlers stay.

    Raises:
        SettingsError: a job cannot run over such a RAY_ADDRESS, or not from this machine.
        DistillError: Ray does not start, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
    auto_init_hook.enable_auto_connect = False  # the data set's thread must not start another Ray
    address = os.environ.get("RAY_ADDRESS", "")
    if not re.fullmatch(r"|local|auto|[^/]+:\d+", address):
        raise SettingsError(
            f"{_name(address)}: Ray Data needs the cluster's own address, such as head:6379, on a "
            f"node of it; from elsewhere, use {_SUBMIT}"
        )
    if address in ("", "local"):
        options: dict[str, Any] = {"address": "local", "include_dashboard": bool(dashboard_host)}
        if dashboard_host:
            options["dashboard_host"] = dashboard_host
        _connect(lambda said: DistillError(f"Ray did not start: {_cut(said)}; run again"), options)
    else:
        if address != "auto":
            _require_node(address)
        _connect(lambda said: _explain_refusal(address, said), {})
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _connect(explain: Callable[[str], DistillError], options: dict[str, Any]) -> None:
    """Connects; `explain` makes an error of what Ray says if it cannot."""
    try:
        with _keeping_handlers():
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # Ray raises plain ones
        raise explain(str(error) or type(error).__name__) from None


def _cut(said: str) -> str:
    return said.splitlines()[0][:300]


def _name(address: str) -> str:
    return f"RAY_ADDRESS={address!r}"


def _require_node(address: str) -> None:
    """Makes sure that this machine is a node of the cluster: elsewhere Ray aborts the process."""
    wanted = _resolve(address)
    if not wanted:
        raise DistillError(f"{_name(address)}: there is no such host; run again when there is")
    if _is_node(wanted):
        return
    try:  # Ray itself takes a minute to give up
        socket.create_connection(min(wanted), _ANSWER_SECONDS).close()
    except OSError as error:
        raise DistillError(
            f"{_name(address)}: nothing answers there ({error}); run again when the cluster is up"
        ) from None
    raise SettingsError(
        f"{_name(address)}: this machine is not a node of that Ray cluster; run the command on one "
        f"of its nodes, or use {_SUBMIT}"
    )


def _is_node(wanted: set[tuple[str, int]]) -> bool:
    """Whether a raylet of the cluster at one of these addresses runs on this machine."""
    any_host = {port for host, port in wanted if ip_address(host).is_loopback}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if "raylet" not in Path(command[0]).name:
            continue
        options = dict(part.partition("=")[::2] for part in command)
        is_here = Path(options.get("--raylet_socket_name", "")).is_socket()  # not in a container
        served = _resolve(options.get("--gcs-address", ""))
        if is_here and (served & wanted or any_host & {port for _, port in served}):
            return True
    return False


def _resolve(address: str) -> set[tuple[str, int]]:
    """The IP addresses, and the port, of host:port; none where there is no such host."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return set()
    return {(str(where[0]), int(where[1])) for *_, where in found}


def _explain_refusal(address: str, said: str) -> DistillError:
    """What Ray has said, as an error: one that no retry repeats, where that cannot help."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for sign, advice in (
        ("Version mismatch", "use the cluster's own versions here, or `ray job submit`"),
        ("InvalidAuthToken", "set RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN"),
    ):
        if found := [i for i, line in enumerate(lines) if sign in line]:
            reason = " ".join(lines[found[-1] : found[-1] + 7])[:400]
            return SettingsError(f"{_name(address)}: {reason}; {advice}")
    reason = _cut(lines[-1]) if lines else "no answer"
    return DistillError(
        f"{_name(address)} cannot be reached: {reason}; run again when the cluster is up"
    )


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
