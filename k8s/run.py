#!/usr/bin/env python3
"""Runs one job on Kubernetes: `make k8s-run JOB=train OVERLAY=gpu`, or `k8s/run.py train gpu`.

Replaces the job of the last time, whether Job or RayJob, applies the overlay's settings and this
job, resumes it if it is suspended (in a Kueue queue, Kueue does that), prints its log from one pod
to the next, and ends with the exit code of the job's container. Ctrl-C leaves the job running.
Needs kubectl, and of Python the standard library alone.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

OVERLAYS = Path(__file__).resolve().parent / "overlays"
JOBS = ("label", "train", "evaluate")
KINDS = {"Job": "jobs.batch", "RayJob": "rayjobs.ray.io"}
COMPONENT = "app.kubernetes.io/component"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
RAY_CLUSTER_LABEL = "ray.io/cluster"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")

PATIENCE_SECONDS = 300.0
"""How long the cluster may fail to answer before this gives up."""
LOG_END_SECONDS = 10.0
"""How long a log may take to end after its job."""

Object = dict[str, Any]


class RunError(Exception):
    """Ends the command; `exit_code` is the command's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        """`message` is for the user."""
        super().__init__(message)
        self.exit_code = exit_code


class KubectlError(RunError):
    """A command of kubectl's failed; another try may help."""


said: set[str] = set()


def say(text: str) -> None:
    """Tells the user how it goes, apart from the job's own lines, and each thing once."""
    if text not in said:
        said.add(text)
        print(f"k8s-run: {text}", file=sys.stderr, flush=True)


class Kubectl:
    """kubectl, in one namespace: `namespace`, or the current context's."""

    def __init__(self, namespace: str | None) -> None:  # noqa: D107
        self.command = ["kubectl", *(["--namespace", namespace] if namespace else [])]

    def show(self, *arguments: str) -> None:
        """Runs a command whose output the user sees."""
        if subprocess.run([*self.command, *arguments]).returncode:
            raise KubectlError(f"`{' '.join([*self.command, *arguments])}` failed, see above")

    def read(self, *arguments: str) -> list[Object]:
        """The objects that a command finds."""
        command = [*self.command, *arguments]
        result = subprocess.run([*command, "--output=json"], capture_output=True, text=True)
        if result.returncode:
            raise KubectlError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
        decoder, rest = json.JSONDecoder(), result.stdout.strip()
        objects: list[Object] = []
        while rest:  # a list, or one document after the other
            document, end = decoder.raw_decode(rest)
            objects += document.get("items", [document])
            rest = rest[end:].lstrip()
        return objects


class Log:
    """A pod's log, each line once, also where the connection breaks."""

    def __init__(self, kubectl: Kubectl, pod: str) -> None:
        """`pod` is its name."""
        self.kubectl, self.pod = kubectl, pod
        self.is_done = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._is_last = self._has_news = False
        self._time = ""

    def go_on(self, pod: Object | None) -> None:
        """Starts to print, and again until a reading after the pod's end brings nothing new."""
        if self._thread and self._thread.is_alive():
            return
        if pod is None or (self._is_last and not self._has_news):
            self.is_done = True
            return
        if not self._thread:
            say(f"log of pod {self.pod}")
        self._is_last, self._has_news = is_over(pod), False
        since = [f"--since-time={self._time}"] if self._time else []
        command = ["logs", "--follow", "--timestamps", *since, f"pod/{self.pod}"]
        self._process = subprocess.Popen([*self.kubectl.command, *command], stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._print, args=(self._process,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Prints no more."""
        if self._process:
            self._process.kill()

    def _print(self, process: "subprocess.Popen[bytes]") -> None:
        printed = self._time  # since-time counts in whole seconds: some lines come again
        for line in process.stdout or ():
            moment, _, text = line.decode(errors="replace").partition(" ")
            if not TIMESTAMP.match(moment):  # the kubelet's: why it cannot retrieve the log
                say(f"log of pod {self.pod}: {moment} {text.strip()}")
            elif moment > printed:
                self._time, self._has_news = moment, True
                print(text, end="", flush=True)
        process.wait()


class Run:
    """A job that was applied, up to its end."""

    def __init__(self, kubectl: Kubectl, target: str, selector: str, poll_seconds: float) -> None:
        """`target` as kubectl names it; `selector` selects its pods, and maybe others'."""
        self.kubectl, self.target, self.poll_seconds = kubectl, target, poll_seconds
        self.selector = selector
        self.uid = ""
        self.logs: dict[str, Log] = {}

    def wait(self) -> int:
        """Prints the log and what holds the job up, until it ends; gives the exit code."""
        answered = time.monotonic()
        try:
            while True:
                try:
                    job = self._get()
                    pods = self._list_pods(job)
                    self._explain(job, pods)
                    answered = time.monotonic()
                except KubectlError as error:
                    if time.monotonic() > answered + PATIENCE_SECONDS:
                        raise RunError(f"{error}; {self.target} may go on") from None
                    say(f"trying again: {error}")
                    time.sleep(self.poll_seconds)
                    continue
                self._print_log(pods)
                if (end := find_end(job, pods)) is not None:
                    self._print_rest(pods)
                    reason, exit_code = end
                    say(f"{self.target} {reason}")
                    return exit_code
                time.sleep(self.poll_seconds)
        finally:
            for log in self.logs.values():
                log.stop()

    def _get(self) -> Object:
        found = self.kubectl.read("get", self.target, "--ignore-not-found")
        if not found:
            raise RunError(f"{self.target} was deleted")
        uid = found[0]["metadata"]["uid"]
        if self.uid not in ("", uid):
            raise RunError(f"{self.target} was replaced by another one")
        self.uid = uid
        return found[0]

    def _list_pods(self, job: Object) -> list[Object]:
        """The job's pods, oldest first."""
        found = self.kubectl.read("get", "pods", f"--selector={self.selector}")
        pods = [pod for pod in found if is_pod_of(pod, job)]
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def _explain(self, job: Object, pods: list[Object]) -> None:
        for pod in pods:
            for trouble in list_troubles(pod):
                say(f"pod {pod['metadata']['name']}: {trouble}")
        queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
        if job["spec"].get("suspend"):
            where = f"waits in Kueue's queue {queue}" if queue else "is suspended"
            say(f"{self.target} {where}")
        if not pods:  # a quota, or a policy, may refuse them
            self._show_warnings(job["kind"], {self.uid: ""})
        # A volume may be missing; whatever else holds a pod up, list_troubles tells.
        waiting = [pod for pod in pods if is_waiting(pod) and not list_troubles(pod)]
        if waiting:
            names = {p["metadata"]["uid"]: f"pod {p['metadata']['name']}: " for p in waiting}
            self._show_warnings("Pod", names)

    def _show_warnings(self, kind: str, names: dict[str, str]) -> None:
        """The events of type Warning of objects of a kind; `names`, by their ids, come first."""
        # FailedScheduling says what the pod's condition says, and stays when that has passed.
        selector = f"involvedObject.kind={kind},type=Warning,reason!=FailedScheduling"
        with contextlib.suppress(KubectlError):  # not everybody may read events
            for event in self.kubectl.read("get", "events", f"--field-selector={selector}"):
                name = names.get(event["involvedObject"].get("uid"))
                if name is not None:
                    say(f"{name}{event.get('reason')}: {event.get('message')}")

    def _print_log(self, pods: list[Object]) -> bool:
        """Lets one log go on, that of the oldest pod; whether there is one to go on."""
        present = {pod["metadata"]["name"]: pod for pod in pods if has_log(pod)}
        for name in present:  # oldest first
            self.logs.setdefault(name, Log(self.kubectl, name))
        for name, log in self.logs.items():
            if not log.is_done:
                log.go_on(present.get(name))
                return True
        return False

    def _print_rest(self, pods: list[Object]) -> None:
        deadline = time.monotonic() + LOG_END_SECONDS
        while self._print_log(pods) and time.monotonic() < deadline:
            time.sleep(self.poll_seconds / 10)


def list_owners(item: Object) -> list[str]:
    """The ids of what an object belongs to."""
    return [owner["uid"] for owner in item["metadata"].get("ownerReferences", [])]


def is_pod_of(pod: Object, job: Object) -> bool:
    """Whether a pod is a Job's; for a RayJob, whether it is its submitter's or its cluster's."""
    if job["kind"] == "Job":
        return job["metadata"]["uid"] in list_owners(pod)
    labels = pod["metadata"].get("labels", {})
    cluster = job.get("status", {}).get("rayClusterName")
    is_submitter = labels.get(JOB_NAME_LABEL) == job["metadata"]["name"]
    return is_submitter or bool(cluster and labels.get(RAY_CLUSTER_LABEL) == cluster)


def list_troubles(pod: Object) -> list[str]:
    """What keeps a pod from running, and what its containers ended with, in the cluster's words."""
    status = pod["status"]
    troubles = [
        f"{condition.get('reason')}: {condition.get('message')}"
        for condition in status.get("conditions", [])
        if (condition["type"], condition["status"])
        in (("PodScheduled", "False"), ("DisruptionTarget", "True"))
    ]
    kinds = ("initContainerStatuses", "containerStatuses")
    for container in [container for kind in kinds for container in status.get(kind, [])]:
        state, last_state = container.get("state", {}), container.get("lastState", {})
        for ended in (last_state.get("terminated", {}), state.get("terminated", {})):
            if ended.get("exitCode"):
                troubles.append(f"{ended.get('reason', 'Error')}: exit code {ended['exitCode']}")
        waiting = state.get("waiting", {})
        if waiting.get("message"):  # without one: ContainerCreating and the like
            troubles.append(f"{waiting['reason']}: {waiting['message']}")
    return troubles


def is_waiting(pod: Object) -> bool:
    """Whether a pod has not begun to run."""
    return pod["status"].get("phase") == "Pending"


def has_log(pod: Object) -> bool:
    """Whether a pod of a Job (the submitter's, for a RayJob) has begun to run."""
    states = [c.get("state", {}) for c in pod["status"].get("containerStatuses", [])]
    has_begun = any("running" in state or "terminated" in state for state in states)
    return JOB_NAME_LABEL in pod["metadata"].get("labels", {}) and has_begun


def is_over(pod: Object) -> bool:
    """Whether a pod has ended."""
    return pod["status"].get("phase") in ("Succeeded", "Failed")


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
    for condition in status.get("conditions", []):
        if condition["status"] == "True" and condition["type"] == "Complete":
            return "is complete", 0
        if condition["status"] == "True" and condition["type"] == "Failed":
            reason = f"failed: {condition.get('reason')}: {condition.get('message')}"
            return reason, find_exit_code(pods)
    return None


def find_exit_code(pods: list[Object]) -> int:
    """The exit code of the last pod that failed; 1 where none is left, as after a deadline."""
    codes = [
        container.get("state", {}).get("terminated", {}).get("exitCode", 0)
        for pod in pods
        for container in pod["status"].get("containerStatuses", [])
    ]
    return next((code for code in reversed(codes) if code), 1)


def list_jobs(kubectl: Kubectl, selector: str) -> list[str]:
    """Jobs and RayJobs, as kubectl names them, without those that belong to another object."""
    names: list[str] = []
    for kind in KINDS.values():
        try:
            found = kubectl.read("get", kind, f"--selector={selector}")
        except KubectlError as error:
            # There is no KubeRay, or this user has nothing to do with it.
            if not re.search(r"doesn't have a resource type|\(Forbidden\)", str(error)):
                raise
            continue
        names += [f"{kind}/{item['metadata']['name']}" for item in found if not list_owners(item)]
    return names


def start(kubectl: Kubectl, job: str, overlay: str, poll_seconds: float) -> Run:
    """Replaces the job of the last time, of either kind: two of them would contend for one run."""
    kubectl.read("version")  # tells by itself that there is no cluster
    folder = ["--kustomize", str(OVERLAYS / overlay)]
    rendered = kubectl.read("create", *folder, "--dry-run=client", "--validate=false")
    found = [
        manifest
        for manifest in rendered
        if manifest["kind"] in KINDS and manifest["metadata"]["labels"].get(COMPONENT) == job
    ]
    if len(found) != 1:
        raise RunError(
            f"overlay {overlay} has no job {job} of its own; if it has a JobSet, that runs all: "
            f"kubectl apply -k k8s/overlays/{overlay}",
            exit_code=2,
        )
    manifest = found[0]
    target = f"{KINDS[manifest['kind']]}/{manifest['metadata']['name']}"
    selector = f"app.kubernetes.io/name=distill,{COMPONENT}={job}"
    earlier = sorted({target, *list_jobs(kubectl, selector)})
    # Their pods first: they may still be at work, and save a checkpoint before they go.
    kubectl.show("delete", *earlier, "--ignore-not-found", "--cascade=foreground", "--timeout=10m")
    both = f"{COMPONENT} in (settings, {job})"
    kubectl.show("apply", *folder, f"--selector={both}")
    is_queued = QUEUE_LABEL in manifest["metadata"].get("labels", {})
    if manifest["spec"].get("suspend") and not is_queued:
        resume = '{"spec": {"suspend": false}}'
        kubectl.show("patch", target, "--type=merge", f"--patch={resume}")
    return Run(kubectl, target, selector, poll_seconds)


def parse_arguments() -> argparse.Namespace:
    """Raises RunError if the job or the overlay is unknown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", help=", ".join(JOBS))
    parser.add_argument("overlay", help="a folder in k8s/overlays")
    parser.add_argument("--namespace", help="instead of the current context's")
    parser.add_argument("--poll-seconds", type=float, default=2.0, help="default: %(default)s")
    arguments = parser.parse_args()
    overlays = sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml"))
    for name, given, valid in (
        ("JOB", arguments.job, JOBS),
        ("OVERLAY", arguments.overlay, overlays),
    ):
        if given not in valid:
            is_or_not = f"is {given!r}, and should be" if given else "is not given; it should be"
            raise RunError(f"{name} {is_or_not} one of {', '.join(valid)}", exit_code=2)
    return arguments


def main() -> int:
    """Runs the command, and gives its exit code."""
    run = None
    try:
        arguments = parse_arguments()
        kubectl = Kubectl(arguments.namespace)
        run = start(kubectl, arguments.job, arguments.overlay, arguments.poll_seconds)
        return run.wait()
    except FileNotFoundError:
        say("kubectl is not installed, or not on the PATH")
        return 2
    except RunError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        if run:
            command, name = " ".join(run.kubectl.command), run.target.split("/")[1]
            say(f"{run.target} goes on; `{command} logs -f job/{name}` shows its log, and")
            say(f"`{command} delete {run.target}` ends it")
        return 130


if __name__ == "__main__":
    sys.exit(main())
