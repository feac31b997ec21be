"""kubectl as a command: what it prints, and one line for what fails."""

import json
import re
import subprocess
import sys
from collections.abc import Hashable
from typing import Any

Object = dict[str, Any]
said: set[Hashable] = set()

OPERATORS = {
    "RayJob": "KubeRay",
    "JobSet": "JobSet",
    "LocalQueue": "Kueue",
    "TrainJob": "Kubeflow Trainer",
    "TrainingRuntime": "Kubeflow Trainer",
}
OWN_LOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.")  # kubectl's: a time and a process id in each


class RunError(Exception):
    """Ends the command; `exit_code` is the command's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class KubectlError(RunError):
    """A command of kubectl's failed; another try may help. `reason` is kubectl's."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"`{command}` failed: {reason}")
        self.reason = reason


def say(text: str, key: Hashable = None) -> None:
    """Tells the user how it goes, apart from the job's own lines; once for each `key`, or text."""
    if (key or text) not in said:
        said.add(key or text)
        print(f"k8s-run: {text}", file=sys.stderr, flush=True)


class Kubectl:
    """kubectl, in one namespace: `namespace`, or the current context's."""

    def __init__(self, namespace: str | None) -> None:
        self.command = ["kubectl", *(["--namespace", namespace] if namespace else [])]

    def run(self, *arguments: str, stdout: int | None = None) -> str:
        """Runs a command whose output the user sees; its errors become one line.

        Raises:
            RunError: a name does not exist in this cluster; the fix is told.
            KubectlError: anything else.
        """
        options: Object = {"encoding": "utf-8", "errors": "replace"}
        command = [*self.command, *arguments]
        result = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, **options)
        if result.returncode:
            reason = condense(result.stderr)
            if cause := find_cause(reason):
                raise RunError(cause, 2)
            raise KubectlError(f"{self} {arguments[0]}", reason)
        if stdout is None:
            sys.stderr.write(result.stderr)  # warnings
        return result.stdout or ""

    def read(self, *arguments: str) -> str:
        """What a command prints."""
        return self.run(*arguments, stdout=subprocess.PIPE)

    def find(self, resource: str, selector: str) -> list[Object]:
        """The objects of a kind that `selector`, an option of kubectl's, selects."""
        text = self.read("get", resource, selector, "--output=json", "--request-timeout=60s")
        found: list[Object] = json.loads(text)["items"]
        return found

    def __str__(self) -> str:
        return " ".join(self.command)


def condense(errors: str) -> str:
    """One line of what kubectl prints as it fails, each thing once."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    own = [line for line in lines if not OWN_LOG.match(line) and not line.startswith("Warning:")]
    return "; ".join(dict.fromkeys(own or lines[-1:])) or "no reason"


def find_cause(reason: str) -> str:
    """What is missing in the cluster, and the fix; empty if that is not the reason."""
    if kind := re.search(r'no matches for kind "(\w+)"', reason):
        operator = OPERATORS.get(kind[1], "the operator that brings it")
        fix = f"install {operator} (docs/kubernetes.md#components), or choose another OVERLAY"
        return f"the cluster does not know {kind[1]}: {fix}"
    if namespace := re.search(r'namespaces "([^"]+)" not found', reason):
        fix = f"kubectl create namespace {namespace[1]}, or choose another NAMESPACE"
        return f"the namespace {namespace[1]!r} does not exist: {fix}"
    return ""
