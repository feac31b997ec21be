"""The logs of a job's pods, for a person: each line once, from one pod to the next."""

import json
import re
from datetime import datetime

from kubectl import Kubectl, KubectlError, Object, say

JOB_NAME = "batch.kubernetes.io/job-name"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")

# How often the kubelet may fail to give a log before that is told: a minute, by when a node that
# has gone is known to be not ready.
PATIENCE = 30


class PodLogs:
    """What is printed so far."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self._unread: dict[str, str] = {}
        self._times: dict[str, str] = {}  # of a pod's last line
        self._failures: dict[str, int] = {}

    def print(self, pod: Object) -> None:
        """Prints what a pod's log has by now."""
        name, phase = pod["metadata"]["name"], pod["status"].get("phase")
        if phase == "Pending" or JOB_NAME not in pod["metadata"]["labels"]:
            return  # of a RayJob's pods, the submitter's has the log
        say(f"log of pod {name}")
        before = self._times.get(name, "")
        since = [f"--since-time={before}"] if before else []  # whole seconds: some lines come again
        try:
            text = self.kubectl.read("logs", "--timestamps", *since, name)
        except KubectlError as error:
            self._fail(pod, error.reason)
            return
        self._unread.pop(name, None)
        self._failures.pop(name, None)
        *lines, unfinished = text.split("\n")
        if phase != "Running" or not TIMESTAMP.match(unfinished):
            lines.append(unfinished)
        for line in filter(None, lines):
            moment, _, content = line.partition(" ")
            if not TIMESTAMP.match(moment):  # why the kubelet cannot retrieve the log
                self._unread[name] = line
                say(f"pod {name}: {line}")
            elif moment > before:
                self._times[name] = moment
                print(format_line(content), flush=True)

    def list_unread(self, pods: list[Object]) -> dict[str, str]:
        """By pod, why its log could not be read to its end."""
        names = [pod["metadata"]["name"] for pod in pods]
        return {name: self._unread[name] for name in names if name in self._unread}

    def _fail(self, pod: Object, reason: str) -> None:
        """Says why a log cannot be read: at once if it never can, else if that lasts."""
        name = pod["metadata"]["name"]
        if "(NotFound)" in reason:
            return  # it has just gone
        if "(Forbidden)" not in reason:
            self._unread[name] = reason
            self._failures[name] = self._failures.get(name, 0) + 1
            if self._explain_node(pod) or self._failures[name] < PATIENCE:
                return
        say(f"pod {name}: its log cannot be read: {reason}", ("log", name))

    def _explain_node(self, pod: Object) -> bool:
        """Says that a pod's node is not ready; whether it is so."""
        name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
        try:
            (found,) = self.kubectl.find("nodes", f"--field-selector=metadata.name={node}")
            (ready,) = [c for c in found["status"]["conditions"] if c["type"] == "Ready"]
        except (KubectlError, KeyError, ValueError):  # not everybody may read nodes
            return False
        if ready["status"] == "True":
            return False
        say(
            f"node {node} is not ready: {ready.get('reason')}: {ready.get('message')} Pod {name} "
            "may be at work there; if the node is gone for good, "
            f"`{self.kubectl} delete pod {name} --force` lets the next pod start",
            ("node", node, ready.get("lastTransitionTime")),
        )
        return True


def format_line(text: str) -> str:
    """A line as the job prints it at a terminal; in a pod, log lines are JSON objects."""
    try:
        line = json.loads(text) if text.startswith("{") else None
        moment = datetime.fromisoformat(line["time"]) if line and "level" in line else None
        return f"{moment.astimezone():%H:%M:%S} {line['message']}" if line and moment else text
    except (ValueError, KeyError, TypeError):  # another program's line
        return text
