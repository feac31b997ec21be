"""The compose file, on a copy of what a clone has, with a real S3 server beside the jobs."""

import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from support.docker_engine import ROOT, docker

SETTINGS = """
OMP_NUM_THREADS=1
DISTILL_RUN=composed
DISTILL_DATA__SOURCE=builtin
DISTILL_TEACHER__BASE_URL=builtin
DISTILL_STUDENT__MODEL=builtin
DISTILL_TEACHER__REQUESTS_PER_MINUTE=600
DISTILL_DATA__TRAIN_LIMIT=200
DISTILL_DATA__TEST_LIMIT=40
DISTILL_TRAIN__EPOCHS=1
DISTILL_EVALUATE__MAX_NEW_TOKENS=32
DISTILL_PREDICT__SOURCE=/files/inputs.jsonl
"""
PORTS = ("DASHBOARD_PORT", "REPORT_PORT", "S3_PORT")


@pytest.fixture(scope="module")
def compose(image: str, s3_image: str, tmp_path_factory) -> Iterator[Callable[..., list[str]]]:
    """The compose command for a project of its own, which is removed with its volumes."""
    clone = tmp_path_factory.mktemp("clone")
    clone.chmod(0o755)  # containers have users of their own
    for name in ("docker", "common", "jobs"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, clone)
    (clone / ".env").write_text((ROOT / ".env.example").read_text() + SETTINGS)
    lines = [json.dumps({"modified": f"the {i} cats sleeps"}) for i in range(50)]
    (clone / "inputs.jsonl").write_text("\n".join(lines))
    names = {"TORCH": "cpu", "IMAGE": image, "S3_IMAGE": s3_image}
    os.environ |= names
    for name in PORTS:
        os.environ[name] = str(find_free_port())
    project = f"distill-test-{uuid.uuid4().hex[:8]}"

    def command(*arguments: str) -> list[str]:
        file = str(clone / "docker/compose.yaml")
        return ["compose", "-p", project, "-f", file, "--profile", "s3", *arguments]

    docker(*command("build", "--quiet"))
    yield command
    docker(*command("down", "--volumes", "--timeout=5"))
    for name in (*names, *PORTS):
        del os.environ[name]


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def fetch(port: str, seconds: float) -> str:
    """The page at a port of this machine, which may not be there yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{os.environ[port]}/", timeout=5) as response:
                return str(response.read().decode())
        except (URLError, OSError):
            assert time.monotonic() < deadline, f"nothing at {port}"
            time.sleep(0.2)


def test_all_jobs_run_in_order_with_their_runs_on_s3(compose):
    with subprocess.Popen(["docker", *compose("up", "--detach")], stderr=subprocess.PIPE) as up:
        dashboard = fetch("DASHBOARD_PORT", 180)
        _, errors = up.communicate(timeout=600)
    assert up.returncode == 0, errors.decode()
    assert "Ray Dashboard" in dashboard
    assert "<title>Distillation of gec: composed</title>" in fetch("REPORT_PORT", 60)
    assert "report: s3://distill/runs/composed/report.html" in docker(*compose("logs", "report"))


def test_a_second_time_all_is_found_done_also_after_the_server_s_restart(compose):
    docker(*compose("stop"))
    docker(*compose("up", "--detach"), seconds=300)
    for job in ("label", "train", "evaluate"):
        assert docker(*compose("logs", job), check=False).count("already done") == 1
    assert "<title>Distillation of gec: composed</title>" in fetch("REPORT_PORT", 60)


def test_one_job_is_run_after_those_that_it_needs(compose):
    done = docker(*compose("run", "--rm", "evaluate"), check=False)
    assert "already done, see s3://distill/runs/composed/metrics.json" in done
    failed = ["run", "--rm", "--no-deps", "-e", "DISTILL_RUN=another", "train"]
    command = ["docker", *compose(*failed)]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 3


def test_predict_answers_a_file_by_name(compose):
    made = docker(*compose("ps", "--all", "--services")).split()
    assert "predict" not in made  # not by `up`
    done = docker(*compose("run", "--rm", "predict"), check=False)
    assert "50 rows, 50 answered by the student" in done
    assert "see s3://distill/runs/composed/outputs/inputs" in done


def test_the_services_run_hardened(compose):
    for name in docker(*compose("ps", "--all", "--quiet")).split():
        values = docker(
            "inspect", "--format", "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}", name
        )
        assert values == "true [ALL]"


def test_a_gpu_is_reserved_by_its_profile_only(compose):
    made = set(docker(*compose("ps", "--all", "--services")).split())
    assert made == {"label", "train", "evaluate", "report", "web", "s3"}
    profiles = ["--profile", "gpu", "--profile", "predict-gpu"]
    services = json.loads(docker(*compose(*profiles, "config", "--format", "json")))
    reserved = {
        name
        for name, service in services["services"].items()
        if "nvidia" in json.dumps(service.get("deploy", {}))
    }
    assert reserved == {"train-gpu", "evaluate-gpu", "predict-gpu"}


def test_without_the_profile_nothing_is_left_of_the_s3_server(compose):
    docker(*compose("down"))
    command = compose("run", "--rm", "--no-deps", "train")
    at = command.index("--profile")
    output = docker(*command[:at], *command[at + 2 :], check=False)
    assert "/app/runs/composed/labels is not finished" in output
