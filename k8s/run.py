#!/usr/bin/env python3
"""Runs one job on Kubernetes: `make k8s-run JOB=train OVERLAY=gpu`, or `k8s/run.py train gpu`.

Replaces the job of the last time, whether Job or RayJob, applies the overlay's settings and this
job, resumes it if it is suspended (in a Kueue queue, Kueue does that), prints its log from one pod
to the next, says why a pod waits, and ends with the exit code of the job's container. Ctrl-C leaves
the job running. Needs kubectl, and of Python the standard library alone.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OVERLAYS = Path(__file__).resolve().parent / "overlays"
KINDS = {"Job": "jobs.batch", "RayJob": "rayjobs.ray.io"}
COMPONENT = "app.kubernetes.io/component"
QUEUE = "kueue.x-k8s.io/queue-name"
JOB_NAME = "batch.kubernetes.io/job-name"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")

PATIENCE_SECONDS = 300.0  # how long the cluster may fail to answer

Object = dict[str, Any]
said: set[str] = set()


class RunError(Exception):
    """Ends the command; `exit_code` is the command's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class KubectlError(RunError):
    """A command of kubectl's failed; another try may help."""


def say(text: str) -> None:
    """Tells the user how it goes, apart from the job's own lines, and each thing once."""
    if text not in said:
        said.add(text)
        print(f"k8s-run: {text}", file=sys.stderr, flush=True)


class Kubectl:
    """kubectl, in one namespace: `namespace`, or the current context's."""

    def __init__(self, namespace: str | None) -> None:
        self.command = ["kubectl", *(["--namespace", namespace] if namespace else [])]

    def run(self, *arguments: str, **options: Any) -> str:
        """Runs a command whose output the user sees; gives what `options` capture of it."""
        result = subprocess.run([*self.command, *arguments], **options)
        if result.returncode:
            reason = (result.stderr or "see above").strip()
            raise KubectlError(f"`{' '.join(self.command)} {arguments[0]}` failed: {reason}")
        return result.stdout or ""

    def read(self, *arguments: str) -> str:
        """What a command prints."""
        return self.run(*arguments, capture_output=True, encoding="utf-8", errors="replace")

    def find(self, resource: str, selector: str) -> list[Object]:
        """The objects of a kind that `selector`, an option of kubectl's, selects."""
        return json.loads(self.read("get", resource, selector, "--output=json"))["items"]


def print_log(kubectl: Kubectl, pod: Object, times: dict[str, str]) -> None:
    """Prints what a pod's log has after the time in `times`, which is that of its last line."""
    name, phase = pod["metadata"]["name"], pod["status"].get("phase")
    if phase == "Pending" or JOB_NAME not in pod["metadata"]["labels"]:
        return  # of a RayJob's pods, the submitter's has the log
    say(f"log of pod {name}")
    before = times.get(name, "")
    since = [f"--since-time={before}"] if before else []  # whole seconds: some lines come again
    try:
        *lines, unfinished = kubectl.read("logs", "--timestamps", *since, name).split("\n")
    except KubectlError as error:
        say(f"pod {name}: {error}")
        return
    if phase != "Running" or not TIMESTAMP.match(unfinished):
        lines.append(unfinished)
    for line in filter(None, lines):
        moment, _, text = line.partition(" ")
        if not TIMESTAMP.match(moment):  # why the kubelet cannot retrieve the log
            say(f"pod {name}: {line}")
        elif moment > before:
            times[name] = moment
            print(text, flush=True)


def wait(kubectl: Kubectl, target: str, poll_seconds: float) -> int:
    """Prints the log and why a pod waits, until the job ends; gives the exit code."""
    times: dict[str, str] = {}
    uid, answered = "", time.monotonic()
    while True:
        try:
            job = find_job(kubectl, target, uid)
            uid = job["metadata"]["uid"]
            pods = find_pods(kubectl, job)
            explain(kubectl, job, pods)
            answered = time.monotonic()
        except KubectlError as error:
            if time.monotonic() > answered + PATIENCE_SECONDS:
                raise RunError(f"{error}; {target} may go on") from None
            say(f"trying again: {error}")
        else:
            for pod in pods:
                print_log(kubectl, pod, times)
            if end := find_end(job, pods):
                say(f"{target} {end[0]}")
                return end[1]
        time.sleep(poll_seconds)


def find_job(kubectl: Kubectl, target: str, uid: str) -> Object:
    """The job as it is now; `uid` is its id, once that is known."""
    resource, name = target.split("/")
    found = kubectl.find(resource, f"--field-selector=metadata.name={name}")
    if not found:
        raise RunError(f"{target} was deleted")
    if uid not in ("", found[0]["metadata"]["uid"]):
        raise RunError(f"{target} was replaced by another one")
    return found[0]


def find_pods(kubectl: Kubectl, job: Object) -> list[Object]:
    """A Job's pods; for a RayJob, its submitter's and its cluster's. The oldest comes first."""
    pods = kubectl.find("pods", f"--selector={JOB_NAME}={job['metadata']['name']}")
    if cluster := job.get("status", {}).get("rayClusterName"):
        pods += kubectl.find("pods", f"--selector=ray.io/cluster={cluster}")
    return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])


def explain(kubectl: Kubectl, job: Object, pods: list[Object]) -> None:
    """Says what holds the job and its pods up, and how containers ended, in the cluster's words."""
    if job["spec"].get("suspend"):
        queue = job["metadata"]["labels"].get(QUEUE)
        say(f"the job waits in Kueue's queue {queue}" if queue else "the job is suspended")
    for item in pods or [job]:  # without a pod: a quota may refuse it
        status, name = item.get("status", {}), f"{item['kind']} {item['metadata']['name']}"
        troubles = list_troubles(status)
        if not troubles and status.get("phase", "Pending") == "Pending":  # a volume may be missing
            # FailedScheduling says what the pod's condition says, and stays when that has passed.
            selector = "--field-selector=type=Warning,reason!=FailedScheduling,involvedObject.uid="
            with contextlib.suppress(KubectlError):  # not everybody may read events
                troubles = kubectl.find("events", selector + item["metadata"]["uid"])
        for trouble in troubles:
            say(f"{name}: {trouble.get('reason')}: {trouble.get('message')}")


def list_troubles(status: Object) -> list[Object]:
    """What a pod's status tells of trouble, each with `reason` and `message`."""
    reasons = {("PodScheduled", "False"), ("DisruptionTarget", "True")}
    conditions = status.get("conditions", [])
    troubles = [c for c in conditions if (c["type"], c["status"]) in reasons]
    for container in status.get("initContainerStatuses", []) + status.get("containerStatuses", []):
        for state in (container.get("lastState", {}), container.get("state", {})):
            ended = state.get("terminated", {})
            if ended.get("exitCode"):
                troubles.append(ended | {"message": f"exit code {ended['exitCode']}"})
            if "message" in state.get("waiting", {}):  # without one: ContainerCreating and the like
                troubles.append(state["waiting"])
    return troubles


def find_end(job: Object, pods: list[Object]) -> tuple[str, int] | None:
    """How a job ended, and its exit code; None as long as it has not."""
    status = job.get("status", {})
    if job["kind"] == "RayJob":
        if status.get("jobDeploymentStatus") not in ("Complete", "Failed", "ValidationFailed"):
            return None
        if status.get("jobStatus") == "SUCCEEDED":
            return "is complete", 0
        message = status.get("message", "")
        code = re.search(r"exit code (\d+)", message)
        return f"failed: {message}", int(code[1]) if code else 1
    ended = {c["type"]: c for c in status.get("conditions", []) if c["status"] == "True"}
    if "Complete" in ended:
        return "is complete", 0
    if "Failed" not in ended:
        return None
    reason = f"failed: {ended['Failed'].get('reason')}: {ended['Failed'].get('message')}"
    containers = [c for pod in pods for c in pod["status"].get("containerStatuses", [])]
    codes = [c.get("state", {}).get("terminated", {}).get("exitCode") for c in containers]
    # That of the last pod that failed; after a deadline, none is left.
    return reason, next(filter(None, reversed(codes)), 1)


def start(kubectl: Kubectl, job: str, overlay: str) -> str:
    """Replaces the job of the last time; gives the new one, as kubectl names it."""
    kubectl.read("version")  # tells by itself that there is no cluster
    folder = f"--kustomize={OVERLAYS / overlay}"
    manifest = render(kubectl, folder, job)
    target = f"{KINDS[manifest['kind']]}/{manifest['metadata']['name']}"
    delete(kubectl, job)
    kubectl.run("apply", folder, f"--selector={COMPONENT} in (settings, {job})")
    if manifest["spec"].get("suspend") and QUEUE not in manifest["metadata"]["labels"]:
        kubectl.run("patch", target, "--type=merge", '--patch={"spec": {"suspend": false}}')
    return target


def render(kubectl: Kubectl, folder: str, job: str) -> Object:
    """The manifest of a job in an overlay."""
    lines = '--output=jsonpath={@}{"\\n"}'
    text = kubectl.read("create", folder, "--dry-run=client", "--validate=false", lines)
    manifests = [json.loads(line) for line in text.splitlines()]
    jobs = {m["metadata"]["labels"].get(COMPONENT): m for m in manifests if m["kind"] in KINDS}
    if job not in jobs:
        sets = [manifest["kind"] for manifest in manifests].count("JobSet")
        rest = f"; this overlay's JobSet runs the others: kubectl apply {folder}" if sets else ""
        raise RunError(f"JOB is {job!r}, and should be one of {', '.join(sorted(jobs))}{rest}", 2)
    return jobs[job]


def delete(kubectl: Kubectl, job: str) -> None:
    """Deletes the Job and the RayJob of a component: two of them would contend for one run."""
    selector = f"--selector=app.kubernetes.io/name=distill,{COMPONENT}={job}"
    for resource in KINDS.values():
        try:
            found = kubectl.find(resource, selector)
        except KubectlError as error:
            # There is no KubeRay, or this user has nothing to do with it.
            if not re.search(r"doesn't have a resource type|\(Forbidden\)", str(error)):
                raise
            continue
        for item in found:
            name = f"{resource}/{item['metadata']['name']}"
            # Its pods first: they may still be at work, and save a checkpoint before they go.
            kubectl.run("delete", name, "--cascade=foreground", "--timeout=10m")


def main() -> int:
    """Runs the command, and gives its exit code."""
    overlays = sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", metavar="JOB", help="one of the overlay's")
    parser.add_argument("overlay", metavar="OVERLAY", choices=overlays, help=", ".join(overlays))
    parser.add_argument("--namespace", help="instead of the current context's")
    parser.add_argument("--poll-seconds", type=float, default=2.0, help="default: %(default)s")
    arguments = parser.parse_args()
    kubectl, target = Kubectl(arguments.namespace), ""
    try:
        target = start(kubectl, arguments.job, arguments.overlay)
        return wait(kubectl, target, arguments.poll_seconds)
    except FileNotFoundError:
        say("kubectl is not installed, or not on the PATH")
        return 2
    except RunError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        if target:
            command, name = " ".join(kubectl.command), target.split("/")[1]
            say(f"{target} goes on; `{command} logs -f job/{name}` shows its log, and")
            say(f"`{command} delete {target}` ends it")
        return 130


if __name__ == "__main__":
    sys.exit(main())
