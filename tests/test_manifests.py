import re
import shutil
import subprocess
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import errors
from common.environment import list_settings

ROOT = Path(__file__).parent.parent
BASE = ROOT / "k8s/base"
JOBS = ("label", "train", "evaluate")
KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"}

Manifest = dict[str, Any]


def read_yaml(path: Path) -> Manifest:
    return dict(yaml.safe_load(path.read_text("utf-8")))


def read_env(path: Path) -> dict[str, str]:
    lines = path.read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def get_container(job: Manifest) -> Manifest:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return dict(container)


def get_exit_codes(job: Manifest) -> set[int]:
    rules = job["spec"]["podFailurePolicy"]["rules"]
    (rule,) = [rule for rule in rules if rule["action"] == "FailJob"]
    assert rule["onExitCodes"]["containerName"] == get_container(job)["name"]
    assert rule["onExitCodes"]["operator"] == "In"
    return set(rule["onExitCodes"]["values"])


@pytest.fixture(scope="module")
def compose() -> Manifest:
    return read_yaml(ROOT / "docker/compose.yaml")


@pytest.fixture(scope="module")
def every_job() -> Manifest:
    return read_yaml(BASE / "every-job.yaml")


@pytest.fixture(scope="module", params=["local", "gpu"])
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl to render the overlays")
    command = ["kubectl", "kustomize", str(ROOT / "k8s/overlays" / request.param)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(text))


def test_settings_are_known() -> None:
    paths = [path for folder in ("docker", "k8s") for path in (ROOT / folder).rglob("*")]
    texts = [path.read_text("utf-8") for path in paths if path.is_file()]
    names = {name for text in texts for name in re.findall(r"DISTILL_\w+", text)}
    assert "DISTILL_STORAGE__ROOT" in names
    assert names <= {name for name, _, _ in list_settings()}


def test_secret_names_are_known_and_not_applied() -> None:
    secret = read_yaml(BASE / "secret.example.yaml")
    assert set(secret["stringData"]) <= {name for name, _, _ in list_settings()} | KEYS
    assert set(secret["stringData"].values()) == {"change-me"}
    assert "secret.example.yaml" not in read_yaml(BASE / "kustomization.yaml")["resources"]


def test_pods_share_no_disk() -> None:
    assert read_env(BASE / "settings.env")["DISTILL_STORAGE__ROOT"].startswith("s3://")


@pytest.mark.parametrize("job", JOBS)
def test_kubernetes_job_runs_its_module(job: str) -> None:
    manifest = read_yaml(BASE / f"job-{job}.yaml")
    assert manifest["metadata"]["name"] == f"distill-{job}"
    assert get_container(manifest)["args"] == [f"jobs.{job}"]
    assert find_spec(f"jobs.{job}")
    resources = get_container(manifest)["resources"]
    assert set(resources["requests"]) == set(resources["limits"]) >= {"cpu", "memory"}


def test_compose_service_runs_its_module(compose: Manifest) -> None:
    services = compose["services"]
    commands = {name: service["command"] for name, service in services.items()}
    assert commands.pop("gpu") == "jobs.pipeline"
    assert commands == {name: f"jobs.{name}" for name in (*JOBS, "report")}
    assert all(find_spec(service["command"]) for service in services.values())


def test_compose_services_wait_for_the_one_before(compose: Manifest) -> None:
    order = (*JOBS, "report")
    for before, after in pairwise(order):
        assert compose["services"][after]["depends_on"] == {
            before: {"condition": "service_completed_successfully"}
        }


def test_one_image_everywhere(compose: Manifest, every_job: Manifest) -> None:
    images = {service["image"] for service in compose["services"].values()}
    images.add(get_container(every_job)["image"])
    for path in (ROOT / "k8s").rglob("kustomization.yaml"):
        for image in read_yaml(path).get("images", []):
            images.add(f"{image['newName']}:{image['newTag']}")
    assert images == {"distill:dev"}


def test_one_user_everywhere(every_job: Manifest) -> None:
    security = every_job["spec"]["template"]["spec"]["securityContext"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "docker/Dockerfile").read_text("utf-8"), re.M)
    assert user is not None
    assert [int(part) for part in user.groups()] == [security["runAsUser"], security["runAsGroup"]]


def test_permanent_errors_fail_the_job(every_job: Manifest) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    permanent = {kind.exit_code for kind in kinds if issubclass(kind, errors.DistillError)}
    permanent.discard(errors.DistillError.exit_code)
    assert get_exit_codes(every_job) == permanent


def test_rendered_jobs_are_restricted(rendered: list[Manifest]) -> None:
    jobs = [manifest for manifest in rendered if manifest["kind"] == "Job"]
    assert {job["metadata"]["name"] for job in jobs} == {f"distill-{job}" for job in JOBS}
    for job in jobs:
        pod, container = job["spec"]["template"]["spec"], get_container(job)
        assert pod["restartPolicy"] == "Never"  # without it there is no podFailurePolicy
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert get_exit_codes(job) >= {2, 3, 4}
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_rendered_jobs_find_their_settings(rendered: list[Manifest]) -> None:
    (settings,) = [manifest for manifest in rendered if manifest["kind"] == "ConfigMap"]
    assert not [manifest for manifest in rendered if manifest["kind"] == "Secret"]
    for job in [manifest for manifest in rendered if manifest["kind"] == "Job"]:
        source = get_container(job)["envFrom"][0]["configMapRef"]["name"]
        assert source == settings["metadata"]["name"]


def test_every_object_has_a_component_to_select(rendered: list[Manifest]) -> None:
    for manifest in rendered:
        component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        job = manifest["metadata"]["name"].removeprefix("distill-")
        assert component == (job if manifest["kind"] == "Job" else "settings")


def test_students_get_a_gpu() -> None:
    (patch,) = read_yaml(ROOT / "k8s/components/gpu/kustomization.yaml")["patches"]
    assert patch["target"]["labelSelector"].endswith("in (train, evaluate)")
    assert get_container(yaml.safe_load(patch["patch"]))["resources"]["limits"] == {
        "nvidia.com/gpu": 1
    }
