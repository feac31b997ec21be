"""A Docker engine, the image, an S3 server, and networks to put containers into."""

import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.docker_engine import IMAGE, ROOT, S3_IMAGE, docker

DOCKER_UP = ROOT.parent / "shared/tools/docker-up"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs an engine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.containers)


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """A Docker engine: the one that is there, or one that is started for the tests."""
    found = subprocess.run(["docker", "info"], capture_output=True, check=False)
    if found.returncode and DOCKER_UP.exists() and os.geteuid() == 0:
        exports = subprocess.run([DOCKER_UP], check=True, stdout=subprocess.PIPE, text=True).stdout
        for line in exports.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = os.path.expandvars(value)
        found = subprocess.run(["docker", "info"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("there is no Docker engine")


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The project's image, with the CPU's torch."""
    arguments = ["-f", "docker/Dockerfile", "--build-arg", "TORCH=cpu", "-t", IMAGE, "."]
    docker("build", "--quiet", *arguments, cwd=ROOT)
    return IMAGE


@pytest.fixture(scope="session")
def s3_image(engine: None) -> str:
    """The image of a real S3 server."""
    docker("build", "--quiet", "-t", S3_IMAGE, "docker/s3", cwd=ROOT)
    return S3_IMAGE


@pytest.fixture(scope="module")
def network(engine: None) -> Iterator[str]:
    """A network of containers; whatever is in it is removed with it."""
    name = f"distill-test-{uuid.uuid4().hex[:8]}"
    docker("network", "create", "--label", "distill-test", name)
    yield name
    left = docker("ps", "--all", "--quiet", "--filter", f"network={name}").split()
    if left:
        docker("rm", "--force", "--volumes", *left)
    docker("network", "rm", name)
    volumes = docker("volume", "ls", "--quiet", "--filter", f"name={name}").split()
    if volumes:  # the pods' claims
        docker("volume", "rm", *volumes)


@pytest.fixture(scope="module")
def s3(network: str, s3_image: str) -> dict[str, str]:
    """What a job in the network needs to use the S3 server there; its bucket is empty."""
    server = docker("run", "--detach", "--network", network, "--network-alias", "s3", s3_image)
    deadline = time.monotonic() + 180
    while docker("inspect", "--format", "{{.State.Health.Status}}", server) != "healthy":
        assert time.monotonic() < deadline, docker("logs", server)
        time.sleep(1)
    lines = docker("exec", server, "grep", "--with-filename", "", "--recursive", "/settings")
    pairs = (line.removeprefix("/settings/").split(":", 1) for line in lines.splitlines())
    return dict(pairs)
