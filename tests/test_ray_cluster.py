"""How a driver reaches a Ray cluster, or says why not."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray._private.utils

from common.errors import DistillError, SettingsError
from common.labels.lanes.ray import cluster
from common.labels.lanes.ray.cluster import _explain_refusal, _is_node, _resolve, start_ray

HERE = Path(__file__).parents[1]
DRIVER = """
from common.labels.lanes.ray import cluster
cluster.start_ray()
import ray
print(ray.get(ray.remote(num_cpus=1)(lambda number: number + 1).remote(1)), flush=True)
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


def drive(address: str) -> str:
    """What a driver on this machine prints."""
    result = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=HERE,
        env=os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0
    return result.stdout.splitlines()[-1]


def test_a_driver_on_a_node_reaches_its_cluster(address: str) -> None:
    assert drive(address) == "2"


def test_a_driver_elsewhere_is_told_how_to_submit(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(f"{start_ray.__module__}._is_node", lambda wanted: False)
    with pytest.raises(SettingsError, match=r"not a node.*`ray job submit --address http://head"):
        start_ray()


def is_node(address: str) -> bool:
    return _is_node(_resolve(address))


def test_a_node_knows_its_cluster_by_any_address(address: str) -> None:
    port = address.split(":")[1]
    assert is_node(address)
    assert is_node(f"localhost:{port}")
    assert is_node(f"{ray.util.get_node_ip_address()}:{port}")
    assert not is_node("127.0.0.1:1")  # another cluster's


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:x"])
def test_an_address_of_another_kind(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingsError, match="needs the cluster's own address, such as head"):
        start_ray()


def test_a_host_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    told = r"RAY_ADDRESS='no-such-host.invalid:6379': no such host"
    with pytest.raises(DistillError, match=told):
        start_ray()


def test_a_port_where_nothing_answers_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DistillError, match=r"RAY_ADDRESS='127\.0\.0\.1:1': nothing answers there"):
        start_ray()


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
        assert not is_node("127.0.0.1:6399")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            assert is_node("127.0.0.1:6399")


def test_a_cluster_that_wants_a_token() -> None:
    error = _explain_refusal("head:6379", "gcs_client.cc:210: Unauthenticated: InvalidAuthToken\n")
    assert isinstance(error, SettingsError)
    assert "RAY_AUTH_TOKEN" in str(error)


def test_ray_starts_where_the_folder_for_temporary_files_has_a_long_name(tmp_path):
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=HERE,
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout == "2\n", result.stderr


def test_a_folder_for_temporary_files_that_is_too_long_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", "/tmp/" + "long" * 25)
    monkeypatch.setattr(cluster, "_SHORT_FOLDERS", (str(tmp_path / "missing"),))
    with pytest.raises(SettingsError, match=r"has 105 characters, .* at most 36; set RAY_TMPDIR"):
        start_ray()
