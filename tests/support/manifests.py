"""The Kubernetes manifests as kubectl renders them, and the pods that they make."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
PIPELINE = ("label", "train", "evaluate")
JOBS = (*PIPELINE, "predict", "report")
OVERLAYS = tuple(sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml")))
COMPONENTS = tuple(sorted(path.parent.name for path in K8S.glob("components/*/kustomization.yaml")))
OTHER_IMAGE = "registry.example/team/distill:1.2"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """One pod template: `name` is a job's, or that of a part of its Ray cluster."""

    name: str
    template: Manifest
    job: str

    @property
    def spec(self) -> Manifest:
        return dict(self.template["spec"])

    @property
    def containers(self) -> list[Manifest]:
        return list(self.spec["containers"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.template["metadata"]["labels"])


@cache
def render(source: str) -> tuple[Manifest, ...]:
    """`overlays/<name>`; or the base with components, as `gpu+kueue`, and with another image."""
    if source.startswith("overlays/"):
        return kustomize(K8S / source)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "k8s"
        shutil.copytree(K8S, copy)
        overlay = copy / "overlays" / "composed"
        overlay.mkdir()
        name, tag = OTHER_IMAGE.rsplit(":", 1)
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../../base"],
            "components": [f"../../components/{name}" for name in source.split("+")],
            "images": [{"name": "distill", "newName": name, "newTag": tag}],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), "utf-8")
        return kustomize(overlay)


def kustomize(folder: Path) -> tuple[Manifest, ...]:
    command = ["kubectl", "kustomize", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, ""), f"{command}: {result.stderr}"
    return tuple(yaml.safe_load_all(result.stdout))


def find(manifests: Sequence[Manifest], kind: str, name: str | None = None) -> list[Manifest]:
    """Those of a kind, and of a name."""
    return [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and name in (None, manifest["metadata"]["name"])
    ]


def list_jobs(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """Job specs by the job's name: those of Jobs, in a JobSet, and in a TrainJob's runtime."""
    jobs = {j["metadata"]["name"].removeprefix("distill-"): j for j in find(manifests, "Job")}
    specs = {name: job["spec"] for name, job in jobs.items()}
    for job_set in find(manifests, "JobSet"):
        for job in job_set["spec"]["replicatedJobs"]:
            specs[job["name"]] = job["template"]["spec"]
    for runtime in find(manifests, "TrainingRuntime"):
        (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        specs["train"] = job["template"]["spec"]
    return specs


def list_ray_jobs(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """RayJobs by the job's name."""
    jobs = {ray_job["metadata"]["name"]: ray_job for ray_job in find(manifests, "RayJob")}
    return {
        name.removeprefix("distill-").removesuffix("-ray"): ray_job
        for name, ray_job in jobs.items()
    }


def list_pods(manifests: Sequence[Manifest]) -> list[Pods]:
    """All pod templates, those of a RayJob too."""
    pods = [Pods(name, spec["template"], name) for name, spec in list_jobs(manifests).items()]
    for job, ray_job in list_ray_jobs(manifests).items():
        spec = ray_job["spec"]
        cluster = spec["rayClusterSpec"]
        pods.append(Pods("submitter", spec["submitterPodTemplate"], job))
        pods.append(Pods("head", cluster["headGroupSpec"]["template"], job))
        pods += [Pods("worker", group["template"], job) for group in cluster["workerGroupSpecs"]]
    return pods


def list_strings(value: Any) -> Iterator[str]:
    """Every text in a manifest, keys too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from list_strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from list_strings(item)
    else:
        yield str(value)
