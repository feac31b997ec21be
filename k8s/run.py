#!/usr/bin/env python3
"""Runs one job on Kubernetes: `make k8s-run JOB=train OVERLAY=gpu`, or `k8s/run.py train gpu`.

Replaces the job of the last time, whether Job, RayJob or TrainJob, applies the overlay's settings
and this job, resumes it if it is suspended (in a Kueue queue, Kueue does that), prints its log from
one pod to the next, says what holds it up, and ends with the exit code of the job's container.
Ctrl-C leaves the job running. Needs kubectl, and of Python the standard library alone.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

from kubectl import Kubectl, KubectlError, Object, RunError, say
from pod_logs import JOB_NAME, PodLogs
from troubles import NODE, QUEUE, Troubles

OVERLAYS = Path(__file__).resolve().parent / "overlays"
KINDS = {
    "Job": "jobs.batch",
    "RayJob": "rayjobs.ray.io",
    "TrainJob": "trainjobs.trainer.kubeflow.org",
}
COMPONENT = "app.kubernetes.io/component"
JOB_SET = "jobset.sigs.k8s.io/jobset-name"  # of a TrainJob's pods
KEYS = "distill-secrets"
PORT = 8080  # of the report

PATIENCE_SECONDS = 300.0  # how long the cluster may fail to answer
LOG_PATIENCE = 15  # polls after a job's end for logs that cannot be read


def wait(kubectl: Kubectl, target: str, poll_seconds: float) -> int:
    """Prints the log and what holds the job up, until it ends; gives the exit code."""
    logs, troubles = PodLogs(kubectl), Troubles(kubectl)
    uid, answered, polls_left = "", time.monotonic(), LOG_PATIENCE
    while True:
        try:
            job = find_job(kubectl, target, uid)
            uid = job["metadata"]["uid"]
            pods = find_pods(kubectl, job)
        except KubectlError as error:
            if time.monotonic() > answered + PATIENCE_SECONDS:
                raise RunError(f"{error}; {target} may go on") from None
            say(f"trying again: {error}", ("outage", answered))
        else:
            answered = time.monotonic()
            for pod in pods:  # before how they ended: the log explains that
                logs.print(pod)
            troubles.explain(job, pods)
            if end := find_end(job, pods):
                polls_left -= 1
                unread = logs.list_unread(pods)
                if not unread or not polls_left:
                    return tell_end(target, end, unread)
        time.sleep(poll_seconds)


def tell_end(target: str, end: tuple[str, int], unread: dict[str, str]) -> int:
    """Says how a job ended, and which logs could not be read; gives the exit code."""
    for name, reason in unread.items():
        say(f"pod {name}: the end of its log could not be read: {reason}")
    say(f"{target} {end[0]}")
    return end[1]


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
    label = JOB_SET if job["kind"] == "TrainJob" else JOB_NAME
    pods = kubectl.find("pods", f"--selector={label}={job['metadata']['name']}")
    if cluster := job.get("status", {}).get("rayClusterName"):
        pods += kubectl.find("pods", f"--selector=ray.io/cluster={cluster}")
    return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])


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
    manifests = render(kubectl, folder)
    manifest = choose(manifests, job, folder)
    target = f"{KINDS[manifest['kind']]}/{manifest['metadata']['name']}"
    delete(kubectl, job)
    kubectl.run("apply", folder, f"--selector={COMPONENT} in (settings, {job})")
    look_for_keys(kubectl, manifests)
    if manifest["spec"].get("suspend") and QUEUE not in manifest["metadata"]["labels"]:
        kubectl.run("patch", target, "--type=merge", '--patch={"spec": {"suspend": false}}')
    if job == "report":
        command = f"{kubectl} port-forward job/{manifest['metadata']['name']} {PORT}:{PORT}"
        say(f"once it serves: `{command}` in another terminal, then http://localhost:{PORT}")
    return target


def render(kubectl: Kubectl, folder: str) -> list[Object]:
    """The manifests of an overlay."""
    lines = '--output=jsonpath={@}{"\\n"}'
    text = kubectl.read("create", folder, "--dry-run=client", "--validate=false", lines)
    return [json.loads(line) for line in text.splitlines()]


def choose(manifests: list[Object], job: str, folder: str) -> Object:
    """The manifest of a job."""
    found = [manifest for manifest in manifests if manifest["kind"] in KINDS]
    jobs = {manifest["metadata"]["labels"].get(COMPONENT): manifest for manifest in found}
    if job not in jobs:
        sets = [manifest["kind"] for manifest in manifests].count("JobSet")
        rest = f"; this overlay's JobSet runs the others: kubectl apply {folder}" if sets else ""
        raise RunError(f"JOB is {job!r}, and should be one of {', '.join(sorted(jobs))}{rest}", 2)
    return jobs[job]


def look_for_keys(kubectl: Kubectl, manifests: list[Object]) -> None:
    """Says that the namespace has no keys, which the jobs may do without: an identity, no key."""
    configs = [manifest["data"] for manifest in manifests if manifest["kind"] == "ConfigMap"]
    if any(config.get("DISTILL_TEACHER__BASE_URL") == "builtin" for config in configs):
        return
    try:
        kubectl.read("get", "secret", KEYS, "--output=name")
    except KubectlError as error:
        if "(NotFound)" in error.reason:  # not everybody may read secrets
            command = f"{kubectl} apply -f my-secret.yaml"
            say(f"this namespace has no secret {KEYS}, so the job has no keys: `{command}`")


def delete(kubectl: Kubectl, job: str) -> None:
    """Deletes the jobs of a component, of any kind: two of them would contend for one run."""
    selector = f"--selector=app.kubernetes.io/name=distill,{COMPONENT}={job}"
    for resource in KINDS.values():
        try:
            found = kubectl.find(resource, selector)
        except KubectlError as error:
            # There is no such operator, or this user has nothing to do with it.
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
            name = target.split("/")[1] + (NODE if KINDS["TrainJob"] in target else "")
            say(f"{target} goes on; `{kubectl} logs -f job/{name}` shows its log, and")
            say(f"`{kubectl} delete {target}` ends it")
        return 130


if __name__ == "__main__":
    sys.exit(main())
