"""A driver that is no node of the Ray cluster joins it, as long as it lasts, or says why not."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray._private.utils

from common.errors import DistillError, SettingsError
from common.labels.lanes.ray.cluster import _explain_refusal, _is_node, end_ray, start_ray

HERE = Path(__file__).parents[1]
DRIVER = """
import sys, time
from common.labels.lanes.ray import cluster
from common.signals import noting_signals
cluster._is_node = lambda address: False  # as on another machine
cluster.start_ray()
import ray
remote = ray.remote(num_cpus=1)(lambda number: number + 1)
print(ray.get(remote.remote(1)), cluster._joined[0][1], flush=True)
for line in sys.stdin:
    print(ray.get(remote.remote(int(line))), flush=True)
cluster.end_ray(can_shut_down=True)
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a cluster with one CPU, on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    folder = f"/tmp/ray-head-{port}"  # sockets' paths must be short
    options = ["--include-dashboard=false", "--num-cpus=1", "--block", f"--temp-dir={folder}"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}"]
    with subprocess.Popen(
        [*command, *options],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as head:
        deadline = time.monotonic() + 60
        while not Path(folder, "ray_current_cluster").exists():
            assert head.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
        head.terminate()
    subprocess.run(["rm", "-rf", folder], check=True)


@contextlib.contextmanager
def driving(address: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A driver that has joined the cluster, and its node's folder."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=HERE,
        env=os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.startswith("2 "):
                break
        try:
            yield driver, line.split()[1]
        finally:
            driver.kill()


def find_node(folder: str) -> list[int]:
    """The raylets that work in a folder."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "raylet" in Path((process.info["cmdline"] or [""])[0]).name
        and any(folder in part for part in process.info["cmdline"])
    ]


def wait_for_end(folder: str) -> None:
    deadline = time.monotonic() + 30
    while find_node(folder):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_each_driver_joins_by_a_node_of_its_own(address: str) -> None:
    with driving(address) as (first, one), driving(address) as (second, two):
        assert one != two
        assert find_node(one)
        assert first.stdin and second.stdin and second.stdout
        first.stdin.close()
        assert first.wait(60) == 0
        assert not find_node(one)
        assert not Path(one).exists()
        print(5, file=second.stdin, flush=True)  # its own node goes on
        assert second.stdout.readline() == "6\n"
        second.send_signal(signal.SIGKILL)
        wait_for_end(two)


def test_a_node_of_the_cluster_does_not_join(address: str) -> None:
    port = address.split(":")[1]
    assert _is_node(address)
    assert _is_node(f"localhost:{port}")
    assert _is_node(f"{ray.util.get_node_ip_address()}:{port}")
    assert not _is_node("127.0.0.1:1")  # another cluster's


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:x"])
def test_an_address_of_another_kind(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingsError, match="needs the cluster's own address, such as head:6379"):
        start_ray()


def test_a_host_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    with pytest.raises(DistillError, match=r"RAY_ADDRESS='no-such-host.invalid:6379': .* no such"):
        start_ray()


def test_a_port_where_nothing_answers_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DistillError, match=r"RAY_ADDRESS='127\.0\.0\.1:1': nothing answers there"):
        start_ray()


def test_a_stop_is_heard_while_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class StopError(Exception):
        pass

    def check() -> None:
        if time.monotonic() > started + 1:
            raise StopError

    started = time.monotonic()
    with socket.create_server(("", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(StopError):
            start_ray(check=check)
    end_ray(can_shut_down=True)


def test_other_versions_are_named() -> None:
    with pytest.raises(RuntimeError) as caught:
        ray._private.utils.check_version_info(
            {"ray_version": "2.9.0", "python_version": "3.9.1"}, "node 10.0.0.7"
        )
    error = _explain_refusal("head:6379", f"Traceback:\n  …\nRuntimeError: {caught.value}\n")
    assert isinstance(error, SettingsError)
    for part in ("head:6379", "2.9.0", "3.9.1", ray.__version__):
        assert part in str(error)


def test_a_raylet_in_a_container_is_no_node_here(tmp_path: Path) -> None:
    """Its process may be seen on this machine, but not its socket."""
    path = tmp_path / "raylet"
    command = ["raylet", "-c", "read", "--gcs-address=127.0.0.1:6399"]
    command.append(f"--raylet_socket_name={path}")
    with subprocess.Popen(command, executable="/bin/bash", stdin=subprocess.PIPE):
        assert not _is_node("127.0.0.1:6399")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            assert _is_node("127.0.0.1:6399")


def test_a_cluster_that_wants_a_token() -> None:
    error = _explain_refusal("head:6379", "gcs_client.cc:210: Unauthenticated: InvalidAuthToken\n")
    assert isinstance(error, SettingsError)
    assert "RAY_AUTH_TOKEN" in str(error)
