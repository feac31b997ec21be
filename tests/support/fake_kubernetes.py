"""An API server of Kubernetes on loopback, as far as kubectl needs one; tests are controllers."""

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

GROUPS = {
    "v1": [
        *("ConfigMap", "Event", "Node", "PersistentVolumeClaim", "Pod", "Secret", "ServiceAccount")
    ],
    "batch/v1": ["Job"],
    "jobset.x-k8s.io/v1alpha2": ["JobSet"],
    "kueue.x-k8s.io/v1beta2": ["LocalQueue"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "ray.io/v1": ["RayJob"],
    "trainer.kubeflow.org/v1alpha1": ["TrainJob", "TrainingRuntime"],
}


class FakeKubernetes:
    """`control(job)` is called in a thread of its own when a Job or RayJob may run."""

    def __init__(self) -> None:
        self.control: Callable[[Object], None] = self.complete
        self.objects: dict[tuple[str, str, str], Object] = {}  # by resource, namespace and name
        self.logs: dict[str, list[str]] = {}  # by pod
        self.requests: list[str] = []
        self.groups = dict(GROUPS)  # without ray.io/v1 there is no KubeRay
        self.unretrieved_logs = 0  # how many readings of a log the kubelet fails
        self.lost_nodes: set[str] = set()  # their kubelets do not answer
        self.namespaces = {"default", "team"}
        self.keys = {"default", "team"}  # namespaces with the secret
        self.forbidden: set[str] = set()  # resources that the user may not read
        self.is_failing = False
        self._numbers = itertools.count(1)

    def put(self, item: Object) -> Object:
        """Creates or changes an object."""
        metadata = {"namespace": "default", "uid": self._tick(), "creationTimestamp": self._tick()}
        item["metadata"] = metadata | item["metadata"]
        if item["kind"] == "NetworkPolicy" and not item["spec"].get("ingress"):
            item["spec"].pop("ingress", None)  # the API server stores no empty list
        before = self.objects.get(get_key(item))
        self.objects[get_key(item)] = item
        may_run = item["kind"] in ("Job", "RayJob", "TrainJob") and not item["spec"].get("suspend")
        if may_run and (before is None or before["spec"].get("suspend")):
            threading.Thread(target=self.control, args=(item,), daemon=True).start()
        return item

    def delete(self, item: Object, policy: str = "Foreground") -> None:
        """Deletes an object; its pods go with it only where `policy` is Foreground."""
        for key, other in list(self.objects.items()):
            is_owned = other["metadata"].get("owner") == item["metadata"]["uid"]
            if key == get_key(item) or (is_owned and policy == "Foreground"):
                del self.objects[key]

    def start_pod(self, job: Object, name: str, ray_cluster: str = "") -> Object:
        """Starts a pod of a job, or of its `ray_cluster`."""
        self.logs[name] = []
        label = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
        if job["kind"] == "TrainJob":
            label = {
                "batch.kubernetes.io/job-name": f"{job['metadata']['name']}-node-0",
                "jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"],
            }
        metadata = {
            "name": name,
            "labels": {"ray.io/cluster": ray_cluster} if ray_cluster else label,
        }
        metadata |= {"namespace": job["metadata"]["namespace"], "owner": job["metadata"]["uid"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        pod["spec"] = {"containers": [{"name": "job"}], "nodeName": "node-a"}
        return self.put(pod | {"status": make_status("Running", running={})})

    def print(self, pod: Object, *lines: str) -> None:
        """A pod's container prints, all in one second."""
        self.logs[pod["metadata"]["name"]] += [f"{self._tick()} {line}" for line in lines]

    def end(self, job: Object, *pods: Object, exit_code: int = 0) -> None:
        """A Job and its pods end."""
        for pod in pods:
            phase = "Failed" if exit_code else "Succeeded"
            self.set_status(pod, **make_status(phase, terminated={"exitCode": exit_code}))
        end = {"type": "Failed" if exit_code else "Complete", "status": "True"}
        end |= {"reason": "PodFailurePolicy", "message": "it failed"}
        self.set_status(job, conditions=[end])

    def complete(self, job: Object) -> None:
        """A Job's pod prints, and both end."""
        pod = self.start_pod(job, "pod-a")
        self.print(pod, "done")
        self.end(job, pod)

    def warn(
        self, item: Object, reason: str, message: str, kind: str = "Warning", moment: str = ""
    ) -> None:
        """Records an event about an object."""
        event = {"apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason}
        event["lastTimestamp"] = moment or self._tick()
        about = {"kind": item["kind"]}
        about |= {name: item["metadata"].get(name) for name in ("name", "namespace", "uid")}
        named = {"metadata": {"name": f"event-{self._tick()}"}}
        self.put(event | named | {"message": message, "involvedObject": about})

    def lose_node(self, name: str) -> None:
        """A node's kubelet stops to answer, and the cluster notices."""
        self.lost_nodes.add(name)
        ready = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        ready |= {"message": "Kubelet stopped posting node status.", "lastTransitionTime": "now"}
        metadata = {"name": name, "namespace": ""}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        self.put(node | {"status": {"conditions": [ready]}})

    def set_status(self, item: Object, **status: Any) -> None:
        """Changes the status of a pod or a job."""
        self.put(self.objects[get_key(item)] | {"status": status})

    def _tick(self) -> str:
        """A time after all before, in the same second."""
        return f"2026-01-01T00:00:00.{next(self._numbers):09}Z"

    def find(self, resource: str, namespace: str, query: Object) -> list[Object]:
        """What a list's selectors select."""
        labels = [part.split("=") for part in query.get("labelSelector", "").split(",") if part]
        fields = [part for part in query.get("fieldSelector", "").split(",") if part]
        return [
            item
            for (kind, space, _), item in sorted(self.objects.items())
            if (kind, space) == (resource, namespace)
            and all(item["metadata"].get("labels", {}).get(key) == value for key, value in labels)
            and all(has_field(item, field) for field in fields)
        ]


def get_resource(kind: str) -> str:
    return f"{kind.lower()}s".replace("ys", "ies")


def get_key(item: Object) -> tuple[str, str, str]:
    metadata = item["metadata"]
    return get_resource(item["kind"]), metadata["namespace"], metadata["name"]


def make_status(phase: str, **state: Any) -> Object:
    """A pod's status; `state` is that of its container."""
    return {"phase": phase, "containerStatuses": [{"name": "job", "state": state}]}


def has_field(item: Any, selector: str) -> bool:
    """Whether a field is, or is not, what a selector says: `type=Warning`, `reason!=BackOff`."""
    path, _, value = selector.partition("=")
    for part in path.rstrip("!").split("."):
        item = item.get(part, {})
    return (item == value) != path.endswith("!")


def merge(item: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(item, dict) or not isinstance(patch, dict):
        return patch
    changed = {key: merge(item.get(key), value) for key, value in patch.items()}
    return {key: value for key, value in (item | changed).items() if value is not None}


@contextmanager
def serve(folder: Path) -> Iterator[FakeKubernetes]:
    """A cluster whose kubeconfig is `folder`/kubeconfig."""
    cluster = FakeKubernetes()
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_port}"
    config = {
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake"}}],
        "current-context": "fake",
    }
    (folder / "kubeconfig").write_text(json.dumps(config), "utf-8")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    cluster: FakeKubernetes
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.cluster.requests.append(f"{self.command} {url.path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.cluster.is_failing:
            self._fail(503, "ServiceUnavailable", "the server is currently unable to handle it")
        elif document := find_document(url.path, self.cluster.groups):
            self._send(document)
        elif re.fullmatch("/api/v1/namespaces/[^/]+", url.path):
            name = url.path.rpartition("/")[2]
            if name in self.cluster.namespaces:
                self._send({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            else:
                self._fail(404, "NotFound", f'namespaces "{name}" not found')
        elif "/namespaces/" in url.path:
            self._serve_objects(url.path.partition("/namespaces/")[2].split("/"), query, body)
        elif url.path == "/api/v1/nodes":
            self._serve_objects(["", "nodes"], query, body)
        else:
            self._send({}, 404)

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _serve_objects(self, path: list[str], query: dict[str, str], body: Object) -> None:
        namespace, resource, name, log = (*path, "", "")[:4]
        item = self.cluster.objects.get((resource, namespace, name))
        if resource == "secrets" and namespace in self.cluster.keys:
            item = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
        if (log or resource) in self.cluster.forbidden:
            self._fail(403, "Forbidden", f"the user cannot read {log or resource}")
        elif self.command == "POST" and namespace not in self.cluster.namespaces:
            self._fail(404, "NotFound", f'namespaces "{namespace}" not found')
        elif self.command == "POST":
            body["metadata"]["namespace"] = namespace
            self._send(self.cluster.put(body), 201)
        elif not name:
            items = self.cluster.find(resource, namespace, query)
            self._send({"kind": "List", "apiVersion": "v1", "items": items})
        elif item is None:
            self._fail(404, "NotFound", f'{resource} "{name}" not found')
        elif log and item["spec"]["nodeName"] in self.cluster.lost_nodes:
            url, port = f"https://10.0.0.7:10250/containerLogs/{name}", self.client_address[1]
            reason = f"read tcp 10.0.0.1:{port}->10.0.0.7:10250: connection reset by peer"
            self._fail(500, "", f'Get "{url}": {reason}')
        elif log and self.cluster.unretrieved_logs:
            self.cluster.unretrieved_logs -= 1
            self._send("unable to retrieve container logs for containerd://0")
        elif log:  # with timestamps, since a second, that is, from its beginning
            since = query.get("sinceTime", "").rstrip("Z")
            self._send("".join(f"{line}\n" for line in self.cluster.logs[name] if line >= since))
        elif self.command == "DELETE":
            self.cluster.delete(item, body.get("propagationPolicy", "Background"))
            self._send(item)
        elif self.command == "PATCH":
            self._send(self.cluster.put(merge(item, body)))
        else:
            self._send(item)

    def _fail(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self._send(status | {"reason": reason, "message": message}, code)

    def _send(self, document: Object | str, code: int = 200) -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def find_document(path: str, known: dict[str, list[str]]) -> Object | None:
    """What kubectl asks about the server itself: its version, and the groups `known` to it."""
    documents: dict[str, Object] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": []},
        # That the server checks the fields itself, so that kubectl asks for no schema.
        "/openapi/v3": {"paths": {}},
        "/openapi/v3/all": {"openapi": "3.0.0", "paths": {}},
    }
    for group_version, kinds in known.items():
        group, _, version = group_version.rpartition("/")
        root = f"apis/{group_version}" if group else "api/v1"
        if group:
            versions = [{"groupVersion": group_version, "version": version}]
            documents["/apis"]["groups"].append({"name": group, "versions": versions})
        documents["/openapi/v3"]["paths"][root] = {"serverRelativeURL": "/openapi/v3/all"}
        more = {"namespaced": True, "verbs": ["create", "delete", "get", "list", "patch"]}
        resources = [{"name": get_resource(kind), "kind": kind} | more for kind in kinds]
        for resource in resources:
            resource["namespaced"] = resource["kind"] != "Node"
        listed = {"kind": "APIResourceList", "groupVersion": group_version}
        documents[f"/{root}"] = listed | {"resources": resources}
        for kind in kinds:
            gvk = {"group": group, "version": version, "kind": kind}
            patch = {"parameters": [{"name": "fieldValidation", "in": "query"}]}
            patch["x-kubernetes-group-version-kind"] = gvk
            documents["/openapi/v3/all"]["paths"][f"/{kind}"] = {"patch": patch}
    return documents.get(path)
