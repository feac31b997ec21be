"""Runs the containers of rendered manifests by Docker, as a kubelet would."""

import shutil
from pathlib import Path
from typing import Any

from support.docker_engine import docker, give
from support.manifests import K8S, Manifest, Pods, find, kustomize, list_pods


def render_with(overlay: str, settings: dict[str, str], image: str, folder: Path) -> list[Manifest]:
    """An overlay as somebody has it who has put in settings and an image of their own."""
    copy = folder / "k8s"
    shutil.copytree(K8S, copy)
    for path in (copy / "base/settings.env", copy / "overlays" / overlay / "settings.env"):
        if path.exists():
            known = dict(
                line.split("=", 1) for line in path.read_text().splitlines() if "=" in line
            )
            lines = [f"{name}={value}" for name, value in (known | settings).items()]
            path.write_text("\n".join(lines) + "\n")
    kustomization = copy / "overlays" / overlay / "kustomization.yaml"
    text = kustomization.read_text()
    if "images:" not in text:
        text += "images: [{name: distill, newName: distill, newTag: dev}]\n"
    name, tag = image.split(":")
    text = text.replace("newName: distill", f"newName: {name}").replace("Tag: dev", f"Tag: {tag}")
    kustomization.write_text(text)
    return list(kustomize(copy / "overlays" / overlay))


class Cluster:
    """Containers of one overlay's pods on one Docker network."""

    def __init__(
        self, manifests: list[Manifest], network: str, secrets: dict[str, str] | None = None
    ) -> None:
        """`secrets` are what the Secret holds that the manifests refer to.

        Of RayJobs, it is the label job's cluster.
        """
        found = [pods for pods in list_pods(manifests) if pods.job in (pods.name, "label")]
        self.pods = {pods.name: pods for pods in found}
        self.network, self.secrets = network, secrets or {}
        (self.config,) = find(manifests, "ConfigMap")
        self.head = ""
        self.workers: list[str] = []

    def start(self, name: str, *command: str, alias: str | None = None) -> str:
        """Starts a pod's container, with its own command or that of an operator; gives its id."""
        pods = self.pods[name]
        (container,) = pods.containers
        arguments = [
            *self._list_security(pods, container),
            *self._list_volumes(pods, container),
            *give(self._list_environment(container)),
            "--env=OMP_NUM_THREADS=1",
            f"--network={self.network}",
            f"--network-alias={alias or name}",
            f"--stop-timeout={pods.spec.get('terminationGracePeriodSeconds', 30)}",
            f"--memory={container['resources']['limits']['memory'].lower().removesuffix('i')}",
        ]
        if pods.spec.get("shareProcessNamespace"):
            arguments.append("--init")  # reaps, as a pod's pause container does
        if command:
            arguments.append(f"--entrypoint={command[0]}")
        args = command[1:] or container.get("args", [])
        return docker("run", "--detach", *arguments, container["image"], *args)

    def run(self, name: str) -> tuple[int, str]:
        """A pod's container to its end: exit code and log."""
        return wait(self.start(name))

    def _list_environment(self, container: dict[str, Any]) -> dict[str, str]:
        environment: dict[str, str] = {}
        for source in container.get("envFrom", []):
            environment |= self.config["data"] if "configMapRef" in source else self.secrets
        environment |= {item["name"]: item["value"] for item in container.get("env", [])}
        return environment | {"DISTILL_STUDENT__REQUIRE_GPU": "false"}  # there is none here

    def _list_security(self, pods: Pods, container: dict[str, Any]) -> list[str]:
        pod, own = pods.spec["securityContext"], container["securityContext"]
        assert not own["allowPrivilegeEscalation"]
        return [
            f"--user={pod['runAsUser']}:{pod['runAsGroup']}",
            f"--group-add={pod['fsGroup']}",
            f"--read-only={str(own['readOnlyRootFilesystem']).lower()}",
            *(f"--cap-drop={name}" for name in own["capabilities"]["drop"]),
            "--security-opt=no-new-privileges:true",
        ]

    def _list_volumes(self, pods: Pods, container: dict[str, Any]) -> list[str]:
        group = pods.spec["securityContext"]["fsGroup"]
        volumes = {volume["name"]: volume for volume in pods.spec["volumes"]}
        arguments = []
        for mount in container["volumeMounts"]:
            volume, path = volumes[mount["name"]], mount["mountPath"]
            if path == "/dev/shm":
                size = volume["emptyDir"]["sizeLimit"].lower().removesuffix("i")
                arguments.append(f"--shm-size={size}")
            elif "emptyDir" in volume:
                options = {
                    "type": "volume",
                    "dst": path,
                    "volume-driver": "local",
                    "volume-opt": f"type=tmpfs,volume-opt=device=tmpfs,{_quote(group)}",
                }
                pairs = ",".join(f"{key}={value}" for key, value in options.items())
                arguments.append(f"--mount={pairs},volume-nocopy")
            else:
                claim = volume["persistentVolumeClaim"]["claimName"]
                arguments.append(f"--volume={self.network}-{claim}:{path}")
        return arguments


def wait(container: str, seconds: float = 600) -> tuple[int, str]:
    """A container's exit code and log, once it has ended."""
    code = int(docker("wait", container, seconds=seconds))
    return code, docker("logs", container, check=False)


def _quote(group: int) -> str:
    """As a kubelet makes an emptyDir for a pod with an fsGroup."""
    return f'"volume-opt=o=mode=2775,gid={group}"'
