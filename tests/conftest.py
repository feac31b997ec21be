"""What all tests share: an environment of their own, settings, and storages."""

import contextlib
import os
import resource
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import fsspec
import hypothesis
import pytest

from common.environment import load_settings
from common.run.storage import RunStorage
from common.settings import Settings
from support.fake_kubernetes import FakeKubernetes, serve

os.environ["HF_HUB_OFFLINE"] = "1"  # also for what is imported while tests are collected
# Two processes whose threads wait for each other on the same cores are ten times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples each time; `--hypothesis-profile=more` takes many more.
hypothesis.settings.register_profile(
    "few", derandomize=True, deadline=None, max_examples=60, database=None
)
hypothesis.settings.register_profile("more", deadline=None, max_examples=3000)
hypothesis.settings.load_profile("few")

_FOREIGN = ("DISTILL_", "OPENAI_", "AWS_", "RAY_ADDRESS", "HF_")


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path) -> Iterator[None]:
    """No setting of the person's own, no .env; `load_settings` writes to os.environ, too."""
    with mock.patch.dict(os.environ), contextlib.chdir(tmp_path):
        for name in [n for n in os.environ if n.startswith(_FOREIGN)]:
            del os.environ[name]
        os.environ |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        yield


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    """A fake cluster of Kubernetes, which kubectl talks to."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with serve(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students compute in fp32, whatever the CPU can do."""
    monkeypatch.setattr("common.student.weights.has_bf16", lambda: False)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """`settings(DATA__SOURCE="builtin")` sets DISTILL_ variables and loads the settings."""
    monkeypatch.setenv("DISTILL_STORAGE__ROOT", str(tmp_path / "runs"))

    def make(**variables: object) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(f"DISTILL_{name}", str(value))
        return load_settings()

    return make


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    for name, value in zip(names, ("test", "test", "us-east-1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    url = f"s3://bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(url)
    return url


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, settings: Callable[..., Settings]) -> RunStorage:
    """A run's storage, once on the disk and once in an object store."""
    if request.param == "s3":
        return RunStorage(settings(STORAGE__ROOT=f"{request.getfixturevalue('bucket')}/some/runs"))
    return RunStorage(settings())


@pytest.fixture
def full_disk() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with full_disk():` every write past a file's first bytes fails, half done."""

    @contextlib.contextmanager
    def limit_file_size() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit_file_size
