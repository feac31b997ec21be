"""Starts Ray on this machine, or reaches the cluster of RAY_ADDRESS, and leaves it again."""

import atexit
import contextlib
import ctypes
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import auto_init_hook
from ray._private.services import canonicalize_bootstrap_address

from common.errors import DistillError, SettingsError
from common.signals import STOP_SIGNALS

_ANSWER_SECONDS, _JOIN_SECONDS, _LEAVE_SECONDS = 10.0, 60.0, 10.0
_FOLDER_PREFIX = "distill-ray-"
"""Prefix of the folders of nodes that last as long as a job."""
_READY = "ray_current_cluster"
"""The file that Ray writes last into a node's folder."""
_SET_PDEATHSIG = 1
"""Number of Linux' prctl, which sends a signal when the parent dies."""
_joined: list[tuple["subprocess.Popen[bytes]", Path]] = []
"""The Ray node that this process has started, to be one of a cluster's, and its folder."""


def start_ray(dashboard_host: str | None = None, check: Callable[[], None] = lambda: None) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts Ray here; signal handlers stay.

    A machine that is no node of the cluster becomes one, without CPUs, until `end_ray`. `check` is
    called while that takes its time, and may raise.

    Raises:
        SettingsError: a job cannot run over such a RAY_ADDRESS.
        DistillError: Ray does not start, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
    auto_init_hook.enable_auto_connect = False  # the data set's thread must not start another Ray
    address = os.environ.get("RAY_ADDRESS", "")
    if not re.fullmatch(r"|local|auto|[^/]+:\d+", address):
        raise SettingsError(
            f"{_name(address)}: Ray Data needs the cluster's own address, such as "
            "head:6379; where only ray:// or http:// is open, use `ray job submit --address "
            "http://head:8265 -- python -m jobs.label`"
        )
    if address in ("", "local"):
        options: dict[str, Any] = {"address": "local", "include_dashboard": bool(dashboard_host)}
        if dashboard_host:
            options["dashboard_host"] = dashboard_host
        _connect(lambda said: DistillError(f"Ray did not start: {_cut(said)}; run again"), options)
    else:
        options = {} if address == "auto" or _is_node(address) else _join(address, check)
        _connect(lambda said: _explain_refusal(address, said), options)
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


def _is_node(address: str) -> bool:
    """Whether this machine is a node of the cluster, and not by another job's joining alone."""
    wanted = _resolve(address)
    if not wanted:
        raise DistillError(f"{_name(address)}: there is no such host; run again when there is")
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if "raylet" not in Path(command[0]).name or any(f"/{_FOLDER_PREFIX}" in c for c in command):
            continue
        options = dict(part.partition("=")[::2] for part in command)
        is_here = Path(options.get("--raylet_socket_name", "")).is_socket()  # not in a container
        if is_here and _resolve(options.get("--gcs-address", "")) & wanted:
            return True
    return False


def _resolve(address: str) -> set[Any]:
    """The IP addresses, and the port, of host:port."""
    try:
        host, _, port = (canonicalize_bootstrap_address(address) or "").rpartition(":")
        return {found[4][:2] for found in socket.getaddrinfo(host.strip("[]") or None, port)}
    except (OSError, ValueError):
        return set()


def _join(address: str, check: Callable[[], None]) -> dict[str, Any]:
    """Makes this machine a node of the cluster until `end_ray`; gives what `ray.init` needs.

    It has a folder of its own, by which it is told from other nodes that this machine may be.
    """
    try:  # Ray itself takes a minute to give up
        socket.create_connection(min(_resolve(address)), _ANSWER_SECONDS).close()
    except OSError as error:
        raise DistillError(
            f"{_name(address)}: nothing answers there ({error}); run again when the cluster is up"
        ) from None
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    output = folder / "output"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    with output.open("wb") as file:
        node = subprocess.Popen(
            [*command, f"--address={address}", f"--temp-dir={folder}", "--num-cpus=0"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the job, which needs the node to its end
            preexec_fn=_end_with_parent(),
        )
    _joined.append((node, folder))
    deadline = time.monotonic() + _JOIN_SECONDS
    while not (folder / _READY).exists():
        check()
        if node.poll() is not None or time.monotonic() > deadline:
            said = output.read_text(errors="replace")
            _leave()
            raise _explain_refusal(address, said)
        time.sleep(0.2)
    return {"_temp_dir": str(folder)}


def _end_with_parent() -> Callable[[], None] | None:
    """What a new process calls so that it is ended with this one, also after a kill -9."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # here: between fork and exec, nothing may be imported or locked
    return lambda: libc.prctl(_SET_PDEATHSIG, signal.SIGTERM)


def _explain_refusal(address: str, said: str) -> DistillError:
    """What `ray start` has said, as an error: one that no retry repeats, where that cannot help."""
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


def _leave() -> None:
    """Ends the node that was made by `_join`, if any."""
    while _joined:
        node, folder = _joined.pop()
        if (folder / _READY).exists():
            node.terminate()
        else:  # it waits for an answer, and hears of nothing else
            node.kill()
        try:
            node.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)


def check_ray() -> None:
    """Raises a DistillError if a process of Ray's has died: soon it would end this one, too."""
    node = ray._private.worker._global_node
    dead = [name for name, _ in node.dead_processes()] if node else []
    dead += ["node" for process, _ in _joined if process.poll() is not None]
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
