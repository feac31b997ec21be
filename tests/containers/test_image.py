"""The image, run as hardened as the manifests run it."""

import json
import subprocess
import time

import pytest

from support.docker_engine import HARDENED, SMALL, docker, give

BUILTIN = SMALL | {"DISTILL_TEACHER__BASE_URL": "builtin"}


@pytest.fixture(scope="module")
def facts(image: str) -> dict:
    return json.loads(docker("image", "inspect", image))[0]


def run(image: str, settings: dict[str, str]) -> str:
    return docker("run", "--rm", *HARDENED, "--network=none", *give(settings), image)


def run_shell(image: str, script: str) -> str:
    arguments = [*HARDENED, "--network=none", "--entrypoint=bash"]
    return docker("run", "--rm", *arguments, image, "-lc", script)


def test_it_starts_a_job_as_a_fixed_user_and_tells_what_it_is(facts):
    config = facts["Config"]
    assert config["Entrypoint"] == ["python", "-m"]
    assert config["User"] == "10001:10001"
    labels = {
        name.removeprefix("org.opencontainers.image."): v for name, v in config["Labels"].items()
    }
    assert labels["title"] == "distill"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"]


def test_its_size_by_layer(image):
    lines = docker("history", "--no-trunc", "--format", "{{.Size}}|{{.CreatedBy}}", image)
    layers = [line.split("|", 1) for line in lines.splitlines() if "|" in line]
    for size, command in layers:
        if size != "0B":
            print(f"{size:>8}  {command[:100]}")
    assert any("/venv" in command for _, command in layers)


def test_no_layer_holds_a_secret_a_compiler_or_a_cache(image):
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert not any(word in history.lower() for word in ("api_key", "token=", "secret", "password"))
    found = run_shell(
        image,
        "command -v gcc cc g++ clang nvcc; find / -xdev \\( -name .env -o -path '*/.cache/pip/*'"
        " -o -path '/app/runs/*' -o -path '/app/tests/*' \\) 2>/dev/null; true",
    )
    assert found == ""


def test_nothing_is_writable_that_need_not_be(image):
    script = (
        "find / -xdev -writable \\( -type f -o -type d \\)"
        " -not -path '/proc/*' -not -path '/sys/*' -not -path '/dev/*' 2>/dev/null; true"
    )
    arguments = ["--cap-drop=ALL", "--network=none", "--entrypoint=bash"]
    found = set(docker("run", "--rm", *arguments, image, "-c", script).split())
    # Debian's own places for everybody's temporary files, and the three that are told of
    assert found <= {"/tmp", "/var/tmp", "/run/lock", "/cache", "/cache/tmp", "/app/runs"}


def test_no_program_runs_as_another_user(image):
    assert run_shell(image, "find / -xdev -perm /6000 -type f 2>/dev/null; true") == ""


def test_the_whole_workflow_runs_offline(image):
    output = run(image, BUILTIN | {"HF_HUB_OFFLINE": "1"})
    assert "report: /app/runs/default/report.html" in output
    assert "| Distilled student" in output


def test_wrong_settings_end_with_their_exit_code(image):
    arguments = [*HARDENED, "--network=none", "--env=DISTILL_RUNN=x"]
    done = subprocess.run(
        ["docker", "run", "--rm", *arguments, image, "jobs.label"], capture_output=True
    )
    assert done.returncode == 2
    assert b"the nearest known one is DISTILL_RUN" in done.stderr


def test_a_stop_signal_reaches_the_job(image):
    settings = give({"DISTILL_STORAGE__WAIT_SECONDS": "600"})
    name = docker("run", "--detach", *HARDENED, "--network=none", *settings, image, "jobs.train")
    try:
        deadline = time.monotonic() + 60
        while "waiting for" not in docker("logs", name, check=False):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        started = time.monotonic()
        docker("stop", "--time=60", name)
        assert time.monotonic() - started < 20
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name) == "143"
    finally:
        docker("rm", "--force", "--volumes", name)


def test_a_ray_node_passes_the_probes_of_kuberay(image):
    """As KubeRay runs and probes a head: by a login shell, `ray start` and wget."""
    script = (
        "ray start --head --num-cpus=0 --dashboard-host=0.0.0.0 --disable-usage-stats >/dev/null;"
        "probe() { wget --tries 1 -T 2 -q -O- $1 | grep success; };"
        "for i in $(seq 60); do probe http://localhost:52365/api/local_raylet_healthz &&"
        " probe http://localhost:8265/api/gcs_healthz && exit 0; sleep 1; done; exit 1"
    )
    assert "success" in run_shell(image, script)
