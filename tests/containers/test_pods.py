"""The Kubernetes manifests' own containers, run as the pods would run them."""

import shutil

import pytest

from support.docker_engine import HARDENED, SMALL, docker, give
from support.pods import Cluster, render_with, wait

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl")


@pytest.fixture(scope="module")
def teacher(image: str, network: str) -> str:
    """The stand-in, in a container of its own."""
    command = ["common.builtin.teacher", "--host", "0.0.0.0", "--port", "8000"]
    places = [f"--network={network}", "--network-alias=teacher"]
    docker("run", "--detach", "--interactive", *HARDENED, *places, image, *command)
    return "http://teacher:8000/v1"


def test_the_jobs_of_the_gpu_overlay_run_in_order_on_s3(image, network, s3, teacher, tmp_path):
    settings = SMALL | {
        "DISTILL_RUN": "pods",
        "DISTILL_STORAGE__ROOT": s3["DISTILL_STORAGE__ROOT"],
        "DISTILL_TEACHER__BASE_URL": teacher,
        "DISTILL_TEACHER__MODEL": "stand-in",
        "DISTILL_PREDICT__SOURCE": "builtin",
        "DISTILL_PREDICT__SPLIT": "test",
        "AWS_ENDPOINT_URL": s3["AWS_ENDPOINT_URL"],
        "AWS_DEFAULT_REGION": s3["AWS_DEFAULT_REGION"],
    }
    keys = {name: s3[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    manifests = render_with("gpu", settings, image, tmp_path)
    assert not any(key in str(manifests) for key in keys.values())
    cluster = Cluster(manifests, network, keys | {"DISTILL_TEACHER__API_KEY": "any"})
    code, log = cluster.run("train")
    assert (code, "run python -m jobs.label first" in log) == (3, True)  # off the GPU at once
    for job in ("label", "train", "evaluate", "predict"):
        code, log = cluster.run(job)
        assert code == 0, log
    for job in ("evaluate", "predict"):  # again
        code, log = cluster.run(job)
        assert "already done" in log
    places = [f"--network={network}", *give(settings | keys)]
    report = docker("run", "--rm", *HARDENED, *places, image, "jobs.report")
    assert "| Distilled student" in report
    assert f"report: {settings['DISTILL_STORAGE__ROOT']}/pods/report.html" in report


def test_all_jobs_of_the_local_overlay_may_start_at_once(image, network, tmp_path):
    cluster = Cluster(render_with("local", SMALL, image, tmp_path), network)
    started = {job: cluster.start(job) for job in ("evaluate", "train", "label")}
    for job, container in started.items():
        code, log = wait(container)
        assert code == 0, f"{job}: {log}"
    assert "waiting for /app/runs/default/adapter" in docker(
        "logs", started["evaluate"], check=False
    )
    code, log = cluster.run("predict")  # it is created suspended
    assert code == 0, log
