"""Runs k8s/run.py as a command, beside a fake cluster."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from support.fake_kubernetes import FakeKubernetes

ROOT = Path(__file__).parents[2]
TIMEOUT = 120  # seconds, of which a busy machine may need some


def start(
    *arguments: str, k8s: Path = ROOT / "k8s", stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    run_py = str(k8s / "run.py")
    command = [sys.executable, "-E", "-s", "-B", run_py, *arguments, "--poll-seconds=0.1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)


def run(*arguments: str, k8s: Path = ROOT / "k8s") -> tuple[int, str, list[str]]:
    """The exit code, what the job printed (and kubectl), and the lines that the command said."""
    process = start(*arguments, k8s=k8s)
    output, said = process.communicate(timeout=TIMEOUT)
    return process.returncode, output, said.replace("k8s-run: ", "").splitlines()


def make_overlay(folder: Path, *components: str) -> Path:
    """A copy of k8s/ with an overlay `own`."""
    shutil.copytree(ROOT / "k8s", folder / "k8s")
    (folder / "k8s/overlays/own").mkdir()
    lines = ["resources: [../../base]", "components:"]
    lines += [f"- ../../components/{component}" for component in components]
    (folder / "k8s/overlays/own/kustomization.yaml").write_text("\n".join(lines), "utf-8")
    return folder / "k8s"


def wait_for_poll(cluster: FakeKubernetes, polls: int = 1) -> None:
    """Until the command has seen the cluster as it is, `polls` times."""
    seen, poll = len(cluster.requests), "GET /api/v1/namespaces/default/pods"
    deadline = time.monotonic() + TIMEOUT
    while cluster.requests[seen:].count(poll) < polls + 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
