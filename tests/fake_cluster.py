"""An API server of Kubernetes on loopback, as far as kubectl needs one; tests play the controllers.

It keeps Jobs immutable and deletes in the foreground, as the real one does. It checks no schemas.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

GROUPS = {
    "v1": {
        "configmaps": "ConfigMap",
        "events": "Event",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod",
        "serviceaccounts": "ServiceAccount",
    },
    "batch/v1": {"jobs": "Job"},
    "jobset.x-k8s.io/v1alpha2": {"jobsets": "JobSet"},
    "kueue.x-k8s.io/v1beta2": {"localqueues": "LocalQueue"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "ray.io/v1": {"rayjobs": "RayJob"},
}
DELETE_SECONDS = 1.0


class FakeCluster:
    """`control(job)` is called in a thread of its own when a Job or RayJob may run.

    Attributes:
        objects: by resource, namespace and name.
        requests: method and path of all that came.
        log_cuts: how many logs of a pod break off after their first line.
        groups: what it serves; without ray.io/v1 there is no KubeRay.
    """

    def __init__(self, control: Callable[[Object], None]) -> None:
        self.control = control
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.logs: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.log_cuts = 0
        self.groups = dict(GROUPS)
        self.is_failing = False
        self.changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._started: set[str] = set()

    def put(self, resource: str, namespace: str, item: Object) -> Object:
        """Creates or changes an object."""
        with self.changed:
            key = (resource, namespace, item["metadata"]["name"])
            metadata = item["metadata"]
            number = next(self._numbers)
            metadata |= {"namespace": namespace, "resourceVersion": str(number)}
            metadata.setdefault("uid", f"uid-{number}")
            metadata.setdefault("creationTimestamp", datetime.now(UTC).isoformat()[:19] + "Z")
            self.objects[key] = item
            self.changed.notify_all()
        may_run = resource in ("jobs", "rayjobs") and not item["spec"].get("suspend")
        if may_run and metadata["uid"] not in self._started:
            self._started.add(metadata["uid"])
            threading.Thread(target=self.control, args=(item,), daemon=True).start()
        return item

    def delete(self, resource: str, namespace: str, name: str, policy: str = "Foreground") -> None:
        """Deletes an object and, in a moment, its pods; `policy`: which of them goes first."""
        item = self.objects[resource, namespace, name]
        item["metadata"]["deletionTimestamp"] = datetime.now(UTC).isoformat()[:19] + "Z"

        def remove() -> None:
            time.sleep(DELETE_SECONDS)
            with self.changed:
                for key, pod in list(self.objects.items()):
                    owners = pod["metadata"].get("ownerReferences", [])
                    if item["metadata"]["uid"] in [owner["uid"] for owner in owners]:
                        del self.objects[key]
                if policy == "Foreground":
                    del self.objects[resource, namespace, name]
                self.changed.notify_all()

        if policy != "Foreground":
            del self.objects[resource, namespace, name]
        threading.Thread(target=remove, daemon=True).start()

    def start_pod(self, job: Object, name: str, ray_cluster: str = "", **status: Any) -> None:
        """Makes a pod of a job, or of its `ray_cluster`; without a `status` it runs."""
        metadata = job["metadata"]
        labels = dict(metadata["labels"])
        if ray_cluster:
            labels["ray.io/cluster"] = ray_cluster
        else:
            labels["batch.kubernetes.io/job-name"] = metadata["name"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": labels,
                "ownerReferences": [{"uid": metadata["uid"], "kind": job["kind"]}],
            },
            "spec": {"containers": [{"name": "job"}]},
            "status": status or make_status("Running", running={}),
        }
        self.logs.setdefault(name, [])
        self.put("pods", metadata["namespace"], pod)

    def set_pod(self, job: Object, name: str, **status: Any) -> None:
        """Changes a pod's status."""
        namespace = job["metadata"]["namespace"]
        pod = self.objects["pods", namespace, name]
        self.put("pods", namespace, pod | {"status": status})

    def print(self, name: str, *lines: str) -> None:
        """A pod's container prints."""
        with self.changed:
            for line in lines:
                second, number = datetime.now(UTC).isoformat()[:19], next(self._numbers)
                self.logs[name].append(f"{second}.{number:09}Z {line}")
            self.changed.notify_all()

    def end_pod(self, job: Object, name: str, exit_code: int, reason: str = "Error") -> None:
        """A pod's container ends; `reason`: why, if its exit code is not 0."""
        phase = "Failed" if exit_code else "Succeeded"
        ended = {"exitCode": exit_code, "reason": reason if exit_code else "Completed"}
        self.set_pod(job, name, **make_status(phase, terminated=ended))

    def end_job(self, job: Object, kind: str, reason: str = "", message: str = "") -> None:
        """A Job ends; `kind` is Complete or Failed."""
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.set_status(job, conditions=[condition])

    def set_status(self, job: Object, **status: Any) -> None:
        """Changes a job's status."""
        resource = "jobs" if job["kind"] == "Job" else "rayjobs"
        current = self.objects[resource, job["metadata"]["namespace"], job["metadata"]["name"]]
        self.put(resource, job["metadata"]["namespace"], current | {"status": status})

    def find(self, resource: str, namespace: str, query: dict[str, list[str]]) -> list[Object]:
        """What a list's selectors select."""
        wanted = [part.split("=") for part in query.get("labelSelector", [""])[0].split(",")]
        fields = query.get("fieldSelector", [""])[0].split(",")
        return [
            item
            for (kind, space, _), item in sorted(self.objects.items())
            if (kind, space) == (resource, namespace)
            and all(item["metadata"].get("labels", {}).get(k[0]) == k[-1] for k in wanted if k[0])
            and all(has_field(item, field) for field in fields if field)
        ]


def make_status(phase: str, **state: Any) -> Object:
    """A pod's status; `state` is that of its container."""
    return {"phase": phase, "containerStatuses": [{"name": "job", "state": state}]}


def get_field(item: Any, path: str) -> Any:
    """A field by its dotted path; None if it is not there."""
    for part in path.split("."):
        item = (item or {}).get(part)
    return item


def has_field(item: Object, selector: str) -> bool:
    """Whether a field is, or is not, what a selector says: `type=Warning`, `reason!=BackOff`."""
    path, _, value = selector.partition("=")
    return (str(get_field(item, path.rstrip("!"))) == value) != path.endswith("!")


def merge(item: Any, patch: Any) -> Any:
    """A JSON merge patch; stands in for the strategic one, too."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(item) if isinstance(item, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


@contextmanager
def serve(control: Callable[[FakeCluster, Object], None], folder: Path) -> Iterator[FakeCluster]:
    """A cluster whose kubeconfig is `folder`/kubeconfig."""
    cluster = FakeCluster(lambda job: control(cluster, job))
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        "users": [{"name": "fake", "user": {"token": "t"}}],
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
    cluster: FakeCluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._dispatch()

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _dispatch(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        self.cluster.requests.append(f"{self.command} {url.path}")
        if self.cluster.is_failing:
            self._fail(503, "ServiceUnavailable", "the server is starting")
        elif document := find_document(url.path, self.cluster.groups):
            self._send(document)
        elif url.path.startswith("/api/v1/namespaces/") and url.path.count("/") == 4:
            name = url.path.rsplit("/", 1)[1]  # all are there
            self._send({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
        elif "/namespaces/" in url.path:
            self._serve_objects(url.path, parse_qs(url.query), body)
        else:
            self._fail(404, "NotFound", f"there is no {url.path}")

    def _serve_objects(self, path: str, query: dict[str, list[str]], body: Object) -> None:
        group, _, rest = path.partition("/namespaces/")
        api_version = group.removeprefix("/apis/").removeprefix("/api/")
        namespace, resource, *names = rest.split("/")
        kind = GROUPS[api_version][resource]
        name = names[0] if names else ""
        item = self.cluster.objects.get((resource, namespace, name))
        if self.command == "POST":
            self._send(self.cluster.put(resource, namespace, body), 201)
        elif "watch" in query:
            self._watch(resource, namespace, query)
        elif not name:
            items = self.cluster.find(resource, namespace, query)
            listed = {"kind": f"{kind}List", "apiVersion": api_version, "items": items}
            self._send(listed | {"metadata": {"resourceVersion": "1"}})
        elif item is None:
            self._fail(404, "NotFound", f'{resource} "{name}" not found')
        elif names[1:] == ["log"]:
            self._follow(name, namespace, query)
        elif self.command == "DELETE":
            policy = body.get("propagationPolicy", "Background")
            self.cluster.delete(resource, namespace, name, policy)
            self._send(item)
        elif self.command == "PATCH":
            changed = merge(item, body)
            is_other = changed.get("spec", {}).get("template") != item.get("spec", {}).get(
                "template"
            )
            if kind == "Job" and is_other:
                self._fail(422, "Invalid", f'Job "{name}" is invalid: field is immutable')
            else:
                self._send(self.cluster.put(resource, namespace, changed))
        else:
            self._send(item)

    def _watch(self, resource: str, namespace: str, query: dict[str, list[str]]) -> None:
        before = {i["metadata"]["uid"]: i for i in self.cluster.find(resource, namespace, query)}
        self._start_stream("application/json")
        with self.cluster.changed:
            while before:
                self.cluster.changed.wait(0.1)
                found = self.cluster.find(resource, namespace, query)
                for uid in set(before) - {item["metadata"]["uid"] for item in found}:
                    event = {"type": "DELETED", "object": before.pop(uid)}
                    self._write(json.dumps(event) + "\n")
        self._write("")

    def _follow(self, name: str, namespace: str, query: dict[str, list[str]]) -> None:
        """With timestamps, as k8s/run.py asks; since a second, that is, from its beginning."""
        since = query.get("sinceTime", [""])[0].rstrip("Z")
        self._start_stream("text/plain")
        sent = 0
        while True:
            with self.cluster.changed:
                lines = self.cluster.logs[name][sent:]
                pod = self.cluster.objects.get(("pods", namespace, name))
                if not lines and (pod is None or pod["status"]["phase"] in ("Succeeded", "Failed")):
                    break
                if not lines:
                    self.cluster.changed.wait(0.1)
                    continue
            for line in lines:
                sent += 1
                if line >= since:
                    self._write(line + "\n")
                    if self.cluster.log_cuts:
                        self.cluster.log_cuts -= 1
                        self._write("")
                        return
        self._write("")

    def _start_stream(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _write(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _fail(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self._send(status | {"reason": reason, "message": message}, code)

    def _send(self, document: Object, code: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def find_document(path: str, known: dict[str, dict[str, str]]) -> Object | None:
    """What kubectl asks about the server itself: its version, and the groups `known` to it."""
    named = {version: version.split("/")[0] for version in known if "/" in version}
    groups = [
        {"name": group, "versions": [{"groupVersion": both, "version": both.split("/")[1]}]}
        for both, group in named.items()
    ]
    documents: dict[str, Object] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
        "/openapi/v3": {"paths": {}},
    }
    for version, resources in known.items():
        root = f"api{'s' if '/' in version else ''}/{version}"
        group = {"group": named.get(version, ""), "version": version.split("/")[-1]}
        documents[f"/{root}"] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [
                {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind}
                | {"verbs": ["create", "delete", "get", "list", "patch", "watch"]}
                for name, kind in resources.items()
            ],
        }
        # That the server checks the fields itself, so that kubectl asks for no schema.
        documents[f"/openapi/v3/{root}"] = {
            "openapi": "3.0.0",
            "paths": {
                f"/{root}/namespaces/{{namespace}}/{name}/{{name}}": {
                    "patch": {
                        "parameters": [{"name": "fieldValidation", "in": "query"}],
                        "x-kubernetes-group-version-kind": {**group, "kind": kind},
                    }
                }
                for name, kind in resources.items()
            },
        }
        documents["/openapi/v3"]["paths"][root] = {"serverRelativeURL": f"/openapi/v3/{root}"}
    return documents.get(path)
