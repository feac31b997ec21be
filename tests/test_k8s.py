import ipaddress
import json
import os
import re
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from common import errors
from common.environment import list_settings
from common.sections import LabelSettings
from support.manifests import (
    COMPONENTS,
    JOBS,
    K8S,
    OTHER_IMAGE,
    OVERLAYS,
    PIPELINE,
    ROOT,
    find,
    list_jobs,
    list_pods,
    list_ray_jobs,
    list_strings,
    render,
)

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DISTILL_TEACHER__API_KEY"}
STUDENTS = {"train", "evaluate", "predict"}
GPU = "nvidia.com/gpu"
QUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
CUSTOM = {"jobset.x-k8s.io", "ray.io", "kueue.x-k8s.io", "trainer.kubeflow.org"}
FOREIGN = {"AWS_REGION", "AWS_ENDPOINT_URL", "HF_HUB_OFFLINE"}
METADATA_SERVER = "169.254.169.254"  # of AWS, Google and Azure: gives out the machine's credentials
COMPOSITIONS = [
    *[f"overlays/{overlay}" for overlay in OVERLAYS],
    *COMPONENTS,
    "gpu+kueue",
    "gpu+model-cache+jobset",
    "gpu+model-cache+jobset+kueue",
    "gpu+model-cache+ray+ray-token+s3-identity+user-namespaces",
    "gpu+model-image+user-namespaces+jobset",
    "gpu+model-image+user-namespaces+trainjob+kueue",
    "gpu+ray+kueue",
]

pytestmark = [
    pytest.mark.k8s,
    pytest.mark.skipif(
        shutil.which("kubectl") is None, reason="there is no kubectl to render the manifests"
    ),
]


@pytest.fixture(scope="module", params=COMPOSITIONS)
def source(request):
    return request.param


@pytest.fixture(scope="module")
def rendered(source):
    return render(source)


@pytest.fixture(scope="module")
def settings():
    return {name for name, _, _ in list_settings()}


def has(source, component):
    if not source.startswith("overlays/"):
        return component in source.split("+")
    kustomization = yaml.safe_load((K8S / source / "kustomization.yaml").read_text("utf-8"))
    return f"../../components/{component}" in kustomization.get("components", [])


def get_group(manifest):
    return manifest["apiVersion"].split("/")[0]


def list_versions(source):
    """The oldest version that the documentation names, for components too, and the newest three."""
    validate = pytest.importorskip("kubernetes_validate", reason="it has Kubernetes' schemas")
    page = (ROOT / "docs/kubernetes.md").read_text("utf-8")
    needed = [re.search(r"They need kubectl and \[Kubernetes 1\.(\d+) or", page)[1]]
    table = page.partition("## Components")[2]
    for component in COMPONENTS:
        (row,) = re.findall(rf"^\| `{component}` \|.*", table, re.M)
        if has(source, component):
            needed += re.findall(r"Kubernetes 1\.(\d+) or newer", row)
    versions = {tuple(map(int, v.split(".")[:2])) for v in validate.utils.all_versions()}
    newest = [minor for _, minor in sorted(versions)[-3:]]
    return [f"1.{minor}" for minor in {max(map(int, needed)), *newest}]


def test_every_overlay_and_component_is_found():
    assert {"local", "gpu", "ray"} <= set(OVERLAYS)
    assert {"gpu", "s3-identity", "model-cache", "kueue", "jobset", "ray"} <= set(COMPONENTS)


def test_valid_for_the_oldest_and_the_newest_versions_of_kubernetes(source, rendered):
    versions = list_versions(source)
    import kubernetes_validate

    # What is inside of a JobSet or a RayJob becomes Jobs and Pods.
    specs = list_jobs(rendered).values()
    jobs = [{"apiVersion": "batch/v1", "kind": "Job", "spec": spec} for spec in specs]
    pods = [{"apiVersion": "v1", "kind": "Pod", **pods.template} for pods in list_pods(rendered)]
    built_in = [manifest for manifest in rendered if get_group(manifest) not in CUSTOM]
    for manifest in (*built_in, *jobs, *pods):
        for wanted in versions:
            assert kubernetes_validate.validate(manifest, wanted, strict=True) == wanted


def get_known(manifest):
    """What there is a schema for: in a TrainingRuntime is a JobSet."""
    if manifest["kind"] == "TrainingRuntime":
        spec = manifest["spec"]["template"]["spec"]
        return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "spec": spec}
    return manifest if manifest["kind"] != "TrainJob" else None


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "crds").exists(), reason="needs the schemas beside the checkout")
def test_custom_resources_are_valid(rendered):
    jsonschema = pytest.importorskip("jsonschema")
    queues = yaml.safe_load_all((K8S / "components/kueue/cluster-queue.yaml").read_text("utf-8"))
    for manifest in map(get_known, (*rendered, *queues)):
        if manifest and get_group(manifest) in CUSTOM:
            group_version = manifest["apiVersion"].replace("/", ".")
            name = f"{manifest['kind'].lower()}.{group_version}.json"
            schema = json.loads((SHARED / "crds" / name).read_text("utf-8"))
            jsonschema.Draft202012Validator(schema).validate(manifest)


def test_settings_are_known(rendered, settings):
    (config,) = find(rendered, "ConfigMap")
    given = [pods.containers for pods in list_pods(rendered)]
    env = [e["name"] for containers in given for c in containers for e in c.get("env", [])]
    assert "DISTILL_RUN" in config["data"]
    assert {*config["data"], *env} <= settings | FOREIGN


def test_modules_exist(rendered):
    modules = {
        name: spec["template"]["spec"]["containers"][0]["args"]
        for name, spec in list_jobs(rendered).items()
    }
    for name, ray_job in list_ray_jobs(rendered).items():
        python, flag, *rest = ray_job["spec"]["entrypoint"].split()
        assert (python, flag) == ("python", "-m")
        modules[name] = rest
    assert modules == {job: [f"jobs.{job}"] for job in JOBS}
    assert all(find_spec(module) for args in modules.values() for module in args)


def test_one_image_everywhere(source, rendered):
    images = {c["image"] for pods in list_pods(rendered) for c in pods.containers}
    assert images == {"distill:dev" if source.startswith("overlays/") else OTHER_IMAGE}


def test_students_alone_get_a_gpu(source, rendered):
    for pods in list_pods(rendered):
        counts = [c["resources"]["limits"].get(GPU, 0) for c in pods.containers]
        requests = [c["resources"]["requests"] for c in pods.containers]
        is_ray_s = (pods.job, pods.name) == ("predict", "worker")
        is_student = is_ray_s or (has(source, "gpu") and pods.name in STUDENTS)
        assert sum(counts) == (1 if is_student else 0)
        assert not any(GPU in r for r in requests)
        is_tolerated = any(t["key"] == GPU for t in pods.spec.get("tolerations", []))
        is_selected = any("nvidia" in label for label in pods.spec.get("nodeSelector", {}))
        assert is_tolerated == is_selected == bool(sum(counts))


def test_secrets_only_by_reference(rendered):
    (example,) = yaml.safe_load_all((K8S / "base/secret.example.yaml").read_text("utf-8"))
    assert not find(rendered, "Secret")
    for ray_job in find(rendered, "RayJob"):
        assert not {"runtimeEnvYAML", "metadata"} & set(ray_job["spec"])  # anyone may read those
    assert not KEYS & {text for manifest in rendered for text in list_strings(manifest)}
    for pods in list_pods(rendered):
        (container,) = pods.containers
        secrets = [e["secretRef"] for e in container.get("envFrom", []) if "secretRef" in e]
        wanted = {"name": example["metadata"]["name"], "optional": True}
        assert secrets == ([] if pods.name == "submitter" else [wanted])


def test_example_of_the_secret(settings):
    secret = yaml.safe_load((K8S / "base/secret.example.yaml").read_text("utf-8"))
    assert set(secret["stringData"]) == KEYS
    assert {name for name in KEYS if name.startswith("DISTILL_")} <= settings
    assert set(secret["stringData"].values()) == {"change-me"}


def test_everything_named_exists(rendered):
    claims = {claim["metadata"]["name"] for claim in find(rendered, "PersistentVolumeClaim")}
    for pods in list_pods(rendered):
        volumes = {volume["name"]: volume for volume in pods.spec["volumes"]}
        mounts = [m for c in pods.containers for m in c["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == set(volumes)
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims
                assert len(volume) == 2  # its name, and no second kind of volume
        assert find(rendered, "ServiceAccount", pods.spec["serviceAccountName"])
        for source in pods.containers[0].get("envFrom", []):
            if reference := source.get("configMapRef"):
                assert find(rendered, "ConfigMap", reference["name"])
                assert not reference.get("optional")


def test_users_are_the_image_s(rendered):
    text = (ROOT / "docker/Dockerfile").read_text("utf-8")
    user = re.search(r"^USER (\d+):(\d+)$", text, re.M)
    for pods in list_pods(rendered):
        security = pods.spec["securityContext"]
        given = [security[name] for name in ("runAsUser", "runAsGroup", "fsGroup")]
        assert given == [int(user[1]), int(user[2]), int(user[2])]


def test_pods_are_restricted(source, rendered):
    cluster = [job["spec"]["rayClusterSpec"] for job in find(rendered, "RayJob")]
    sidecars = [spec["autoscalerOptions"] for spec in cluster if "autoscalerOptions" in spec]
    for container in [*[c for pods in list_pods(rendered) for c in pods.containers], *sidecars]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"/tmp", "/cache"} <= {m["mountPath"] for m in container["volumeMounts"]}
        kinds = {"cpu", "memory", "ephemeral-storage"}
        resources = container["resources"]
        assert set(resources["requests"]) == set(resources["limits"]) - {GPU} == kinds
    for pods in list_pods(rendered):
        security = pods.spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pods.spec["enableServiceLinks"] is False
        # One head alone talks to the cluster: its autoscaler asks for workers.
        has_autoscaler = (pods.job, pods.name) == ("label", "head")
        assert pods.spec["automountServiceAccountToken"] is has_autoscaler
        kinds = {kind for volume in pods.spec["volumes"] for kind in volume} - {"name"}
        images = {"image"} if has(source, "model-image") else set()
        assert kinds <= {"emptyDir", "persistentVolumeClaim"} | images
    for account in find(rendered, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_shared_memory_is_in_memory(rendered):
    for pods in list_pods(rendered):
        if pods.name == "submitter":
            continue
        (container,) = pods.containers
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
        (volume,) = [v for v in pods.spec["volumes"] if v["name"] == mount["name"]]
        assert volume["emptyDir"]["medium"] == "Memory"
        limit = container["resources"]["limits"]["memory"]
        assert volume["emptyDir"]["sizeLimit"].endswith("Gi") and limit.endswith("Gi")
        # Ray wants 30 % of the memory, and all of it counts as the container's.
        assert float(limit[:-2]) > float(volume["emptyDir"]["sizeLimit"][:-2])
        if pods.name in ("label", "predict", "head", "worker"):
            assert float(volume["emptyDir"]["sizeLimit"][:-2]) >= 0.3 * float(limit[:-2])


def test_jobs_end(source, rendered):
    jobs = list_jobs(rendered)
    ray_jobs = {"label", "predict"} if has(source, "ray") else set()
    assert set(list_ray_jobs(rendered)) == ray_jobs
    assert set(jobs) == set(JOBS) - ray_jobs
    for name, spec in jobs.items():
        pod = spec["template"]["spec"]
        assert pod["restartPolicy"] == "Never"  # without it there is no podFailurePolicy
        assert 1 <= spec["backoffLimit"] <= 6
        assert spec["activeDeadlineSeconds"] > 0
        assert spec["podReplacementPolicy"] == "Failed"
        assert pod["terminationGracePeriodSeconds"] >= (120 if name == "train" else 30)
        is_copied = has(source, "jobset") and name in PIPELINE
        is_copied |= has(source, "trainjob") and name == "train"
        assert ("ttlSecondsAfterFinished" in spec) is not is_copied
    for whole in [*find(rendered, "JobSet"), *find(rendered, "RayJob"), *find(rendered, "Job")]:
        assert whole["spec"]["ttlSecondsAfterFinished"] > 0
    for ray_job in find(rendered, "RayJob"):
        assert 1 <= ray_job["spec"]["backoffLimit"] <= 6
        assert ray_job["spec"]["activeDeadlineSeconds"] > 0
        assert ray_job["spec"]["shutdownAfterJobFinishes"] is True


def test_exit_codes(rendered):
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    permanent = {kind.exit_code for kind in kinds if issubclass(kind, errors.DistillError)}
    permanent.discard(errors.DistillError.exit_code)
    for spec in list_jobs(rendered).values():
        fail, ignore = spec["podFailurePolicy"]["rules"]
        assert (fail["action"], ignore["action"]) == ("FailJob", "Ignore")
        assert fail["onExitCodes"] == {
            "containerName": spec["template"]["spec"]["containers"][0]["name"],
            "operator": "In",
            "values": sorted(permanent),
        }
        assert ignore["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_nothing_waits_on_a_gpu(source, rendered):
    """A plain apply is safe: a job waits in a pod without a GPU, or is suspended, or in order."""
    (config,) = find(rendered, "ConfigMap")
    wait = int(config["data"]["DISTILL_STORAGE__WAIT_SECONDS"])
    assert wait > 0
    jobs = list_jobs(rendered)
    for name in STUDENTS & set(jobs):
        spec = jobs[name]
        (container,) = spec["template"]["spec"]["containers"]
        env = {e["name"]: e["value"] for e in container.get("env", [])}
        if has(source, "gpu"):
            assert env["DISTILL_STORAGE__WAIT_SECONDS"] == "0"
            assert env["DISTILL_STUDENT__REQUIRE_GPU"] == "true"
        else:
            assert "DISTILL_STORAGE__WAIT_SECONDS" not in env
            before = jobs.get("label" if name == "train" else "train", {})
            deadline = before.get("activeDeadlineSeconds", 0)
            assert wait >= deadline  # as long as the job before may take
            assert spec["activeDeadlineSeconds"] > deadline
        is_copied = has(source, "jobset") or (has(source, "trainjob") and name == "train")
        is_suspended = (has(source, "gpu") or has(source, "kueue")) and not is_copied
        assert spec.get("suspend", False) is (is_suspended or name == "predict")
    assert jobs["report"]["suspend"] is True  # until there is an evaluation
    if "predict" not in jobs:
        spec = list_ray_jobs(rendered)["predict"]["spec"]
        assert spec["suspend"] is True
        (head,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        assert {e["name"]: e["value"] for e in head["env"]} == {
            "DISTILL_STORAGE__WAIT_SECONDS": "0",
            "DISTILL_STUDENT__REQUIRE_GPU": "true",
        }


def test_the_report_is_served_where_a_port_forward_alone_reaches_it(rendered):
    (pods,) = [pods for pods in list_pods(rendered) if pods.name == "report"]
    (container,) = pods.containers
    assert "ports" not in container
    env = {item["name"]: item["value"] for item in container["env"]}
    assert env == {
        "DISTILL_REPORT__SERVE": "127.0.0.1:8080",
        "DISTILL_STORAGE__WAIT_SECONDS": "0",
    }


def test_no_field_is_one_that_the_api_server_does_not_store(rendered):
    """Else each apply changes it again: an empty list or text is left out as it is stored."""

    def list_empty(value, path=""):
        if value in ([], ""):
            yield path
        elif isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                yield from list_empty(item, f"{path}/{key}")

    for manifest in rendered:
        assert not list(list_empty(manifest))


def test_kueue_admits_what_it_has_a_quota_for(source, rendered):
    kinds = ("Job", "JobSet", "RayJob", "TrainJob")
    owners = [owner for kind in kinds for owner in find(rendered, kind)]
    for owner in owners:
        is_queued = has(source, "kueue")
        assert (QUEUE in owner["metadata"]["labels"]) is is_queued
        # Without the annotation, Kueue admits none whose workers come and go.
        cluster = owner["spec"].get("rayClusterSpec", {})
        is_elastic = is_queued and cluster.get("enableInTreeAutoscaling", False)
        annotations = owner["metadata"].get("annotations", {})
        assert annotations == ({ELASTIC: "true"} if is_elastic else {})
    if has(source, "kueue"):
        (queue,) = find(rendered, "LocalQueue")
        assert {owner["metadata"]["labels"][QUEUE] for owner in owners} == {
            queue["metadata"]["name"]
        }
        assert all(owner["spec"]["suspend"] is True for owner in owners)
        text = (K8S / "components/kueue/cluster-queue.yaml").read_text("utf-8")
        flavor, cluster = yaml.safe_load_all(text)
        assert cluster["metadata"]["name"] == queue["spec"]["clusterQueue"]
        (group,) = cluster["spec"]["resourceGroups"]
        (quota,) = group["flavors"]
        assert quota["name"] == flavor["metadata"]["name"]
        assert [resource["name"] for resource in quota["resources"]] == group["coveredResources"]
        for pods in list_pods(rendered):
            for container in pods.containers:
                asked = {**container["resources"]["requests"], **container["resources"]["limits"]}
                assert set(asked) <= set(group["coveredResources"])


@pytest.mark.parametrize("before", ["gpu+model-cache", "model-cache"])
def test_a_job_set_is_made_of_the_jobs(before):
    jobs, rendered = list_jobs(render(before)), render(f"{before}+jobset")
    rest = [jobs["predict"], jobs["report"]]
    assert [job["spec"] for job in find(rendered, "Job")] == rest
    (job_set,) = find(rendered, "JobSet")
    parts = job_set["spec"]["replicatedJobs"]
    assert [part["name"] for part in parts] == list(PIPELINE)
    assert [part.get("dependsOn") for part in parts] == [
        None,
        [{"name": "label", "status": "Complete"}],
        [{"name": "train", "status": "Complete"}],
    ]
    for part in parts:
        wanted = {
            key: value
            for key, value in jobs[part["name"]].items()
            if key not in ("suspend", "ttlSecondsAfterFinished")
        }
        assert part["template"]["spec"] == wanted


@pytest.mark.parametrize("before", ["gpu+model-cache", "model-image+user-namespaces"])
def test_a_train_job_is_made_of_the_job(before):
    jobs, rendered = list_jobs(render(before)), render(f"{before}+trainjob")
    assert "distill-train" not in {job["metadata"]["name"] for job in find(rendered, "Job")}
    ((runtime,), (train_job,)) = find(rendered, "TrainingRuntime"), find(rendered, "TrainJob")
    name = runtime["metadata"]["name"]
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name}
    assert train_job["spec"] == {"suspend": True, "runtimeRef": reference}
    # Trainer wants this label, one replica, and the container's name.
    (part,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert (part["name"], part["replicas"]) == ("node", 1)
    assert list(part["template"]["metadata"]["labels"].values()) == ["trainer"]
    wanted = json.dumps(jobs["train"]).replace('"containerName": "job"', '"containerName": "node"')
    wanted = json.loads(wanted.replace('"name": "job"', '"name": "node"'))
    for field in ("suspend", "ttlSecondsAfterFinished"):
        wanted.pop(field, None)
    assert part["template"]["spec"] == wanted


def test_ray_is_the_installed_one():
    ray_jobs = [job for source in ("overlays/ray", "ray") for job in find(render(source), "RayJob")]
    assert len(ray_jobs) == 4
    for ray_job in ray_jobs:
        assert ray_job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


@pytest.mark.parametrize("name", ["label", "predict"])
def test_ray_takes_the_place_of_a_job(name):
    (job,) = find(render("gpu"), "Job", f"distill-{name}")
    ray_job = list_ray_jobs(render("gpu+ray"))[name]
    assert ray_job["metadata"]["labels"] == job["metadata"]["labels"]
    # KubeRay would take a Job of the RayJob's name, left from another overlay, for its own.
    assert ray_job["metadata"]["name"] not in {f"distill-{name}" for name in JOBS}
    (wanted,) = job["spec"]["template"]["spec"]["containers"]
    pods = {pods.name: pods for pods in list_pods((ray_job,))}
    assert set(pods) == {"submitter", "head", "worker"}
    for name in ("head", "worker"):
        (container,) = pods[name].containers
        assert container["envFrom"] == wanted["envFrom"]
        assert container["imagePullPolicy"] == wanted["imagePullPolicy"]
    security = job["spec"]["template"]["spec"]["securityContext"]
    for part in pods.values():
        assert part.spec["securityContext"] == security
        assert part.labels == job["spec"]["template"]["metadata"]["labels"]


def test_ray_has_room_for_its_actors():
    rendered = render("ray")
    (config,) = find(rendered, "ConfigMap")
    cluster = list_ray_jobs(rendered)["label"]["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (1, 4)
    cpus = workers["maxReplicas"] * int(workers["rayStartParams"]["num-cpus"])
    room = cpus / LabelSettings().actor_cpus
    assert int(config["data"]["DISTILL_LABEL__ACTORS"]) == round(room)


def test_ray_has_a_student_for_each_worker_s_gpu():
    """The job counts the GPUs once, so the number of workers is fixed."""
    cluster = list_ray_jobs(render("ray"))["predict"]["spec"]["rayClusterSpec"]
    assert not cluster.get("enableInTreeAutoscaling")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] > 1
    (on_gpu,) = [p.spec for p in list_pods(render("gpu")) if p.name == "predict"]
    for field in ("nodeSelector", "tolerations"):
        assert workers["template"]["spec"][field] == on_gpu[field]


def selects(policy, labels):
    return policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def list_reachable(policies, address):
    """The ports that the pods may reach there: None for all."""
    ports = []
    for rule in [rule for policy in policies for rule in policy["spec"].get("egress", [])]:
        blocks = [to["ipBlock"] for to in rule.get("to", []) if "ipBlock" in to]
        ip = ipaddress.ip_address(address)
        if "to" not in rule or any(
            ip in ipaddress.ip_network(block["cidr"])
            and not any(ip in ipaddress.ip_network(e) for e in block.get("except", []))
            for block in blocks
        ):
            ports += [(port["protocol"], port.get("port")) for port in rule["ports"]]
    return set(ports)


def test_the_network_is_as_open_as_needed(source, rendered):
    dns, any_tcp = {("UDP", 53), ("TCP", 53)}, {("TCP", None)}
    for pods in list_pods(rendered):
        policies = [p for p in find(rendered, "NetworkPolicy") if selects(p, pods.labels)]
        assert {kind for p in policies for kind in p["spec"]["policyTypes"]} == {
            "Ingress",
            "Egress",
        }
        assert list_reachable(policies, "8.8.8.8") == dns | any_tcp
        assert list_reachable(policies, "10.0.0.7") == dns | any_tcp
        assert list_reachable(policies, "2606:4700::1") == dns | any_tcp
        is_open = any_tcp if has(source, "s3-identity") else set()
        assert list_reachable(policies, METADATA_SERVER) == dns | is_open
        assert list_reachable(policies, "fd00:ec2::254") == dns
        ingress = [rule for p in policies for rule in p["spec"].get("ingress", [])]
        assert bool(ingress) is (pods.name in ("submitter", "head", "worker"))
        for rule in ingress:
            peers = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
            if "ports" not in rule:
                assert all(
                    selects({"spec": {"podSelector": {"matchLabels": peer}}}, pods.labels)
                    for peer in peers
                )
            else:
                assert peers == [{"app.kubernetes.io/name": "kuberay-operator"}]
                assert [port["port"] for port in rule["ports"]] == [8265]


def test_labels_select_one_job(rendered):
    for manifest in rendered:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "distill"
        assert labels["app.kubernetes.io/part-of"] == "distill"
        name = manifest["metadata"]["name"].removeprefix("distill-")
        component = {"Job": name, "RayJob": name.removesuffix("-ray"), "JobSet": "pipeline"}
        component |= {"TrainJob": "train", "TrainingRuntime": "train"}
        assert labels["app.kubernetes.io/component"] == component.get(manifest["kind"], "settings")


def test_pods_share_no_disk():
    (config,) = find(render("overlays/gpu"), "ConfigMap")
    assert config["data"]["DISTILL_STORAGE__ROOT"].startswith("s3://")
    (config,) = find(render("overlays/local"), "ConfigMap")
    mounts = [
        c["volumeMounts"] for pods in list_pods(render("overlays/local")) for c in pods.containers
    ]
    paths = [{mount["mountPath"] for mount in each} for each in mounts]
    assert all(config["data"]["DISTILL_STORAGE__ROOT"] in each for each in paths)


def test_model_cache_takes_the_place_of_the_empty_one():
    for pods in list_pods(render("model-cache")):
        (cache,) = [volume for volume in pods.spec["volumes"] if volume["name"] == "cache"]
        assert ("persistentVolumeClaim" in cache) is (pods.name in STUDENTS)


def test_the_student_of_an_image_is_the_one_that_is_set():
    for pods in list_pods(render("model-image")):
        (container,) = pods.containers
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        env = {item["name"]: item["value"] for item in container.get("env", [])}
        volumes = [volume["name"] for volume in pods.spec["volumes"] if "image" in volume]
        assert [mounts[name] for name in volumes] == (["/student"] if pods.name in STUDENTS else [])
        assert env.get("DISTILL_STUDENT__MODEL") == ("/student" if volumes else None)


def test_user_namespaces_are_those_of_all_pods(source, rendered):
    for pods in list_pods(rendered):
        expected = False if has(source, "user-namespaces") else None
        assert pods.spec.get("hostUsers") is expected


def test_ray_s_clusters_have_a_token():
    for ray_job in find(render("ray+ray-token"), "RayJob"):
        assert ray_job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_says_what_it_is_for(component):
    text = (K8S / "components" / component / "kustomization.yaml").read_text("utf-8")
    comment = [line for line in text.split("apiVersion")[0].splitlines() if line.startswith("# ")]
    assert len(comment) >= 1
