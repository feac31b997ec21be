"""Starts Ray on this machine, or connects to the cluster of RAY_ADDRESS; disconnects again."""

import atexit
import contextlib
import importlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import ray
from ray._private import auto_init_hook

from common.errors import DistillError, SettingsError
from common.signals import STOP_SIGNALS

_ANSWER_SECONDS = 10.0
_LONGEST_FOLDER, _SHORT_FOLDERS = 36, ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - as Ray
"""The longest folder for Ray's, in bytes: the path of a socket in it may have 107."""
_AGENT = (
    "import ctypes, os, runpy, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "sys.argv.pop(0); sys.path[0] = os.path.dirname(sys.argv[0]); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Runs the program that is its argument, see `die_with_parent`."""
_SUBMIT = "`ray job submit --address http://head:8265 -- python -m jobs.label`"


def start_ray(dashboard_host: str | None = None) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts Ray here; keeps the signal handlers.

    Raises:
        SettingsError: RAY_ADDRESS is not usable, or not from this machine.
        DistillError: Ray does not start, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
    # Beside busy processes, Ray's workers get nearly nothing of a core at its niceness of 15, and
    # take longer than its minute to start.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
    auto_init_hook.enable_auto_connect = False  # the dataset's thread must not start another Ray
    address = os.environ.get("RAY_ADDRESS", "")
    if not re.fullmatch(r"|local|auto|[^/]+:\d+", address):
        raise SettingsError(
            f"{_name(address)}: Ray Data needs the cluster's own address, such as head:6379, on a "
            f"node of it; from elsewhere, use {_SUBMIT}"
        )
    if address in ("", "local"):
        _choose_folder()
        options: dict[str, Any] = {"address": "local", "include_dashboard": bool(dashboard_host)}
        if dashboard_host:
            options["dashboard_host"] = dashboard_host
        _connect(lambda text: DistillError(f"Ray did not start: {_cut(text)}; run again"), options)
    else:
        if address != "auto":
            _require_node(address)
        _connect(lambda text: _explain_refusal(address, text), {})
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _choose_folder() -> None:
    """Lets Ray use another folder than the usual one if that makes its sockets' paths too long.

    Raises a SettingsError if there is no other.
    """
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get(variable, "")
    length = len(os.fsencode(folder))
    if length <= _LONGEST_FOLDER:
        return
    short = [place for place in _SHORT_FOLDERS if os.access(place, os.W_OK)]
    if not short:
        raise SettingsError(
            f"{variable}={folder!r} has {length} characters, and Ray's sockets need a folder of at "
            f"most {_LONGEST_FOLDER}; set RAY_TMPDIR to a shorter one that can be written to"
        )
    os.environ["RAY_TMPDIR"] = short[0]


def _connect(explain: Callable[[str], DistillError], options: dict[str, Any]) -> None:
    """Connects; `explain` converts Ray's error message."""
    try:
        is_small = options.get("include_dashboard") is False
        little = _starting_little() if is_small else contextlib.nullcontext()
        with _restoring_handlers(), _tying_agents(), little:
            loading = Thread(target=importlib.import_module, args=("ray.data",), daemon=True)
            loading.start()  # a second of imports, while Ray's processes start
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
            loading.join()
        if is_small:
            _run_little()
    except Exception as error:  # Ray raises many types
        raise explain(str(error) or type(error).__name__) from None


def _cut(text: str) -> str:
    return text.splitlines()[0][:300]


def _name(address: str) -> str:
    return f"RAY_ADDRESS={address!r}"


def _require_node(address: str) -> None:
    """Checks that this machine is a node of the cluster: elsewhere Ray aborts the process."""
    wanted = _resolve(address)
    if not wanted:
        raise DistillError(f"{_name(address)}: no such host; run again when it resolves")
    if _is_node(wanted):
        return
    try:  # Ray takes a minute to fail
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
    """The IP addresses and the port of host:port; empty if the host does not resolve."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return set()
    return {(str(where[0]), int(where[1])) for *_, where in found}


def _explain_refusal(address: str, text: str) -> DistillError:
    """Converts Ray's message to an error; a SettingsError if a retry cannot help."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
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
    """Raises a DistillError if a Ray process has died, before Ray ends this process, too."""
    node = ray._private.worker._global_node
    dead = [name for name, _ in node.dead_processes()] if node else []
    if dead:
        raise DistillError(f"Ray's {' and '.join(dead)} died; run again")


def end_ray(can_shut_down: bool) -> None:
    """Disconnects; no shutdown while a thread uses Ray: that would end the process."""
    for name in ("ray", "ray.data"):  # they log what ends early
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if can_shut_down:
        ray.shutdown()
    else:
        atexit.unregister(ray._private.worker.shutdown)


@contextlib.contextmanager
def _tying_agents() -> Iterator[None]:
    """Starts Ray's two agents so that the kernel ends them with the raylet, and it with the driver.

    By themselves, they first try for a minute to report that to what is dead, too.
    """
    services = ray._private.services
    name = "_build_python_executable_command_memory_profileable"
    make_command = getattr(services, name, None)
    if make_command is None:  # another version of Ray, as a cluster may have it
        yield
        return
    setattr(services, name, lambda *about, **options: [sys.executable, "-u", "-c", _AGENT])
    try:
        yield
    finally:
        setattr(services, name, make_command)


@contextlib.contextmanager
def _starting_little() -> Iterator[None]:
    """Starts Ray without processes that one machine without a dashboard does not need.

    The autoscaler, the dashboard's server and the one that prints workers' logs take a second and
    a half of CPU time, while all else waits.
    """
    node, kept = ray._private.node.Node, {}
    for name in ("start_monitor", "start_api_server", "start_log_monitor"):
        if name in vars(node):
            kept[name] = getattr(node, name)
            setattr(node, name, lambda self, **options: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(node, name, method)


def _run_little() -> None:
    """Runs data sets without two more processes: one machine does not scale, and shows no metrics.

    They would start beside the label actors, and take as long.
    """
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution import streaming_executor
    from ray.data._internal.execution.interfaces import ExecutionResources

    class OneMachine(ClusterAutoscaler):  # type: ignore[misc]
        total = ExecutionResources.from_resource_dict(ray.cluster_resources())

        def try_trigger_scaling(self) -> None: ...

        def on_executor_shutdown(self) -> None: ...

        def get_total_resources(self) -> Any:
            return self.total

    streaming_executor.create_cluster_autoscaler = lambda *_, **__: OneMachine()
    for name in list(vars(stats._StatsManager)):
        if name.startswith(("register_", "update_")):
            setattr(stats._StatsManager, name, staticmethod(lambda *_, **__: None))


@contextlib.contextmanager
def _restoring_handlers() -> Iterator[None]:
    """Undoes Ray's own signal handlers, which it sets when it starts."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    utils = ray._private.utils
    # The one in C++ prints a stack trace.
    ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    set_handler, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray's ends with a core dump
