import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.environment import list_settings

ROOT = Path(__file__).parent.parent
BASE = ROOT / "k8s/base"
JOBS = ("label", "train", "evaluate")

Manifest = dict[str, Any]


def read_yaml(path: Path) -> Manifest:
    return dict(yaml.safe_load(path.read_text("utf-8")))


def get_container(job: Manifest) -> Manifest:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.fixture(scope="module")
def compose() -> Manifest:
    return read_yaml(ROOT / "docker/compose.yaml")


@pytest.fixture(scope="module")
def every_job() -> Manifest:
    return read_yaml(BASE / "every-job.yaml")


def test_settings_are_known() -> None:
    paths = [path for folder in ("docker", "k8s") for path in (ROOT / folder).rglob("*")]
    texts = [path.read_text("utf-8") for path in paths if path.is_file()]
    names = {name for text in texts for name in re.findall(r"DISTILL_\w+", text)}
    assert "DISTILL_STORAGE__ROOT" in names
    assert names <= {name for name, _, _ in list_settings()}


def test_compose_service_runs_its_module(compose: Manifest) -> None:
    commands = {
        name: service["command"] for name, service in compose["services"].items() if name != "s3"
    }
    assert commands.pop("web") == "jobs.report"
    for name, command in commands.items():
        assert command == f"jobs.{name.removesuffix('-gpu')}"
        assert find_spec(command)
    on_gpu = {"train-gpu", "evaluate-gpu", "predict-gpu"}
    assert commands.keys() == {*JOBS, "report", "predict"} | on_gpu


def test_compose_services_wait_for_the_one_before(compose: Manifest) -> None:
    services = compose["services"]
    for before, after in pairwise((*JOBS, "report", "web")):
        waits = services[after]["depends_on"]
        assert waits[before] == {"condition": "service_completed_successfully"}
        assert waits["s3"] == {"condition": "service_healthy", "required": False}
    for job in ("train", "evaluate"):
        on_gpu = {"condition": "service_completed_successfully", "required": False}
        assert services[job]["depends_on"][f"{job}-gpu"] == on_gpu


def test_compose_answers_in_bulk_by_name_only(compose: Manifest) -> None:
    services = compose["services"]
    for name in ("predict", "predict-gpu"):
        assert services[name]["profiles"] == [name]
        # By name, its own profile is on, and no other.
        required = {
            before
            for before, how in services[name]["depends_on"].items()
            if how.get("required", True)
        }
        assert not any("profiles" in services[before] for before in required)
    assert services["predict-gpu"]["environment"] == {"DISTILL_STUDENT__REQUIRE_GPU": "true"}


def test_one_image_everywhere(compose: Manifest, every_job: Manifest) -> None:
    named = {service["image"] for name, service in compose["services"].items() if name != "s3"}
    images = {name.removeprefix("${IMAGE:-").removesuffix("}") for name in named}
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
