"""What holds a job and its pods up, and how they end: in the cluster's words, each thing once."""

import contextlib
import re
from collections.abc import Hashable
from typing import NamedTuple

from kubectl import OPERATORS, Kubectl, KubectlError, Object, say
from pod_logs import JOB_NAME

NODE = "-node-0"  # the Job of a TrainJob's has this after its name
QUEUE = "kueue.x-k8s.io/queue-name"

# The job's end tells these.
ENDS = ("DeadlineExceeded", "BackoffLimitExceeded", "PodFailurePolicy")
IMAGE = re.compile(r"Image|^Failed to pull|^Back-off pulling")
PATIENCE = 15  # polls until a job that no controller has touched is told

CLAIM_FIX = "name a StorageClass in the overlay (storageClassName), or make one the default"


class Trouble(NamedTuple):
    """`key` is the same where only names, numbers and the order of words differ."""

    text: str
    key: Hashable


def make_trouble(reason: str | None, message: str | None) -> Trouble:
    """A condition, a container's state or an event."""
    text = f"{reason}: {message}"
    if IMAGE.search(reason or "") or IMAGE.search(message or ""):
        return Trouble(text, "image")  # pulled, refused and waited for in turns, in many words
    words = re.sub(r'"[^"]*"|\S*\d\S*|[\[\],]', " ", message or "").split()
    return Trouble(text, (reason, *sorted(words)))


class Troubles:
    """What a job's objects tell, poll by poll."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self._at_work: set[str] = set()  # pods that had not ended by the last poll
        self._untouched = 0  # polls

    def explain(self, job: Object, pods: list[Object]) -> None:
        """Says what is new."""
        self._explain_gone(pods)
        self._explain_untouched(job)
        for item in pods:
            self._explain_item(item, list_troubles(item.get("status", {})))
        if not pods:  # a quota may refuse them
            self._explain_item(job, [])
            since = job["metadata"]["creationTimestamp"]  # the last time's had the same name
            for kind, name in list_owned(job):
                self._say(kind, name, self._find_events(f"involvedObject.name={name}", since))
        explain_job(job, pods)

    def _explain_gone(self, pods: list[Object]) -> None:
        """Says that a pod has vanished before its end was seen."""
        own = [pod for pod in pods if JOB_NAME in pod["metadata"]["labels"]]
        for name in sorted(self._at_work - {pod["metadata"]["name"] for pod in own}):
            say(f"pod {name} is gone: it was deleted; the end of its log may be missing")
        ended = ("Succeeded", "Failed")
        self._at_work = {
            pod["metadata"]["name"] for pod in own if pod["status"].get("phase") not in ended
        }

    def _explain_untouched(self, job: Object) -> None:
        is_ray = job["kind"] == "RayJob"
        status = job.get("status", {})
        if (status.get("jobDeploymentStatus") if is_ray else status) or job["spec"].get("suspend"):
            self._untouched = 0
            return
        self._untouched += 1
        if self._untouched == PATIENCE:
            operator = OPERATORS.get(job["kind"], "Kubernetes' controller manager")
            say(
                f"{job['kind']} {job['metadata']['name']}: nothing takes it up; does {operator} "
                "run? `kubectl get pods --all-namespaces` shows it"
            )

    def _explain_item(self, item: Object, troubles: list[Trouble]) -> None:
        kind, name = item["kind"], item["metadata"]["name"]
        if claims := [t for t in troubles if "PersistentVolumeClaim" in t.text]:
            if self._explain_claims(item):
                troubles = [trouble for trouble in troubles if trouble not in claims]
        elif not troubles and item.get("status", {}).get("phase", "Pending") == "Pending":
            uid = item["metadata"]["uid"]
            troubles = self._find_events(f"involvedObject.uid={uid}")  # a volume may be missing
        self._say(kind, name, troubles)

    def _say(self, kind: str, name: str, troubles: list[Trouble]) -> None:
        for trouble in troubles:
            say(f"{kind} {name}: {trouble.text}", (kind, name, trouble.key))

    def _find_events(self, about: str, since: str = "") -> list[Trouble]:
        # FailedScheduling says what the pod's condition says, and stays when that has passed.
        selector = f"--field-selector=type=Warning,reason!=FailedScheduling,{about}"
        with contextlib.suppress(KubectlError):  # not everybody may read events
            events = self.kubectl.find("events", selector)
            return [
                make_trouble(event.get("reason"), event.get("message"))
                for event in events
                if event.get("reason") not in ENDS
                and is_cause(event.get("message") or "")
                and (event.get("lastTimestamp") or event.get("eventTime") or since) >= since
            ]
        return []

    def _explain_claims(self, pod: Object) -> bool:
        """Says why a claim of a pod's is not bound; whether that is known."""
        volumes = [v.get("persistentVolumeClaim") for v in pod["spec"].get("volumes", [])]
        reasons = ("FailedBinding", "ProvisioningFailed")
        is_known = False
        for claim in filter(None, volumes):
            about = "involvedObject.kind=PersistentVolumeClaim,involvedObject.name="
            with contextlib.suppress(KubectlError):
                events = self.kubectl.find(
                    "events", f"--field-selector={about}{claim['claimName']}"
                )
                for event in [event for event in events if event.get("reason") in reasons][-1:]:
                    is_known = True
                    name = f"PersistentVolumeClaim {claim['claimName']}"
                    say(f"{name}: {event.get('message')}; {CLAIM_FIX}", name)
        return is_known


def list_owned(job: Object) -> list[tuple[str, str]]:
    """Kind and name of what makes the pods of a RayJob or a TrainJob."""
    if cluster := job.get("status", {}).get("rayClusterName"):
        return [("RayCluster", cluster)]
    return [("Job", job["metadata"]["name"] + NODE)] if job["kind"] == "TrainJob" else []


def explain_job(job: Object, pods: list[Object]) -> None:
    """Says that a job is suspended, or that it waits before its next try."""
    spec, status, name = job["spec"], job.get("status", {}), job["metadata"]["name"]
    if spec.get("suspend"):
        queue = job["metadata"]["labels"].get(QUEUE)
        say(f"the job waits in Kueue's queue {queue}" if queue else "the job is suspended")
    failed = status.get("failed", 0)
    if status.get("jobDeploymentStatus") == "Retrying":
        say(f"{name}: try {failed} failed; another one follows, on a new cluster", ("try", failed))
    has_ended = any(c["status"] == "True" for c in status.get("conditions", []))
    is_idle = not status.get("active") and all(p["status"].get("phase") == "Failed" for p in pods)
    if job["kind"] == "Job" and failed and is_idle and not (has_ended or spec.get("suspend")):
        seconds = min(10 * 2 ** (failed - 1), 600)  # as Kubernetes' job controller counts
        say(
            f"{failed} of at most {spec.get('backoffLimit', 6) + 1} pods failed; the next one "
            f"starts after a back-off of about {seconds} s",
            ("try", failed),
        )


def is_cause(message: str) -> bool:
    """Whether an event or a state tells why; others of the same image only repeat that it waits."""
    is_echo = re.match(r"Error: (Err)?Image|Back-off pulling image \S+$", message)
    return not is_echo


def list_troubles(status: Object) -> list[Trouble]:
    """What a pod's status tells of trouble."""
    reasons = {("PodScheduled", "False"), ("DisruptionTarget", "True")}
    conditions = status.get("conditions", [])
    found = [c for c in conditions if (c["type"], c["status"]) in reasons]
    troubles = [make_trouble(c.get("reason"), c.get("message")) for c in found]
    for container in status.get("initContainerStatuses", []) + status.get("containerStatuses", []):
        for state in (container.get("lastState", {}), container.get("state", {})):
            ended = state.get("terminated", {})
            if code := ended.get("exitCode"):
                text = f"{ended.get('reason')}: exit code {code}"
                troubles.append(Trouble(text, text))
            waiting = state.get("waiting", {})
            # without a message: ContainerCreating and the like
            if "message" in waiting and is_cause(waiting["message"]):
                troubles.append(make_trouble(waiting.get("reason"), waiting["message"]))
    return troubles
