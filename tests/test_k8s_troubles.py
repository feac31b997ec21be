"""What k8s/run.py says of a cluster in trouble: the cause, once, and the log before the end."""

import json
import shutil
import subprocess
import time

import pytest

from support.fake_kubernetes import make_status
from support.k8s_run import TIMEOUT, make_overlay, run, start, wait_for_poll

END = "jobs.batch/distill-train is complete"
NODE = (
    "node node-a is not ready: NodeStatusUnknown: Kubelet stopped posting node status. Pod a may "
    "be at work there; if the node is gone for good, `kubectl delete pod a --force` lets the next "
    "pod start"
)

pytestmark = [
    pytest.mark.k8s,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl"),
]


def test_a_second_apply_changes_nothing(cluster):
    run("train", "local")
    _, output, _ = run("train", "local")
    applied = [line.split() for line in output.splitlines() if line.count(" ") == 1]
    outcomes = {name.split(".")[0].split("/")[0]: outcome for name, outcome in applied}
    unchanged = ["serviceaccount", "configmap", "persistentvolumeclaim", "networkpolicy"]
    assert outcomes == {"job": "created"} | dict.fromkeys(unchanged, "unchanged")


def test_a_node_that_is_not_ready_is_told_in_one_line_and_the_log_goes_on(cluster):
    def control(job):
        pod = cluster.start_pod(job, "a")
        cluster.print(pod, "one")
        wait_for_poll(cluster)
        cluster.lost_nodes.add("node-a")
        wait_for_poll(cluster, polls=2)  # not noticed yet: for most of a minute, nodes are ready
        cluster.lose_node("node-a")
        wait_for_poll(cluster, polls=3)
        cluster.lost_nodes.clear()
        cluster.print(pod, "two")
        cluster.end(job, pod)

    cluster.control = control
    code, output, said = run("train", "gpu")
    assert (code, output.splitlines()[-2:]) == (0, ["one", "two"])
    assert said == ["log of pod a", NODE, END]


def test_the_log_that_cannot_be_read_at_the_end_is_tried_again(cluster):
    def control(job):
        pod = cluster.start_pod(job, "a")
        wait_for_poll(cluster)
        cluster.unretrieved_logs = 3
        cluster.print(pod, "error: the reason")
        cluster.end(job, pod, exit_code=3)

    cluster.control = control
    code, output, said = run("train", "gpu")
    assert (code, output.splitlines()[-1]) == (3, "error: the reason")
    assert said == [
        "log of pod a",
        "pod a: unable to retrieve container logs for containerd://0",
        "Pod a: None: exit code 3",
        "jobs.batch/distill-train failed: PodFailurePolicy: it failed",
    ]


def test_a_log_that_is_lost_is_told_before_the_end(cluster):
    def control(job):
        pod = cluster.start_pod(job, "a")
        wait_for_poll(cluster)
        cluster.lost_nodes.add("node-a")
        cluster.end(job, pod)

    cluster.control = control
    code, _, said = run("train", "gpu")
    assert (code, said[-1]) == (0, END)
    assert said[-2].startswith(
        'pod a: the end of its log could not be read: Error from server: Get "'
    )
    assert len(said) == 3


def test_who_may_not_read_logs_is_told_so_and_needs_no_rights_for_the_rest(cluster):
    cluster.forbidden = {"log", "nodes", "events", "secrets"}

    def control(job):
        pod = cluster.start_pod(job, "a")
        wait_for_poll(cluster)
        cluster.end(job, pod)

    cluster.control = control
    code, _, said = run("train", "gpu")
    assert (code, said[0], said[-1]) == (0, "log of pod a", END)
    assert "its log cannot be read: Error from server (Forbidden)" in said[1]
    assert len(said) == 3


def test_an_outage_of_the_cluster_is_told_once_without_kubectl_s_own_log(cluster, tmp_path):
    def control(job):
        wait_for_poll(cluster)
        cluster.is_failing = True
        shutil.rmtree(
            tmp_path / ".kube", ignore_errors=True
        )  # kubectl asks what the cluster knows, in vain
        time.sleep(2)
        cluster.is_failing = False
        cluster.end(job)

    cluster.control = control
    code, _, said = run("train", "gpu")
    assert (code, said[-1]) == (0, END)
    assert len(said) == 2
    assert said[0].startswith("trying again: `kubectl get` failed: Error from server (Service")


@pytest.mark.parametrize(
    ("reason", "messages"),
    [
        (
            "FailedCreate",
            [
                f'Error creating: pods "distill-train-{pod}" is forbidden: exceeded quota: team, '
                f"requested: limits.memory=16Gi, used: limits.memory={used}, limited: 8Gi"
                for pod, used in (("x7k2p", "4Gi"), ("mm9vq", "6Gi"))
            ],
        ),
        (
            "FailedCreate",
            [
                f'Error creating: pods "distill-train-{pod}" is forbidden: [{", ".join(limits)}]'
                for pod, limits in (
                    ("x7k2p", ("maximum cpu is 1, but limit is 4", "maximum memory is 1Gi")),
                    ("mm9vq", ("maximum memory is 1Gi", "maximum cpu is 1, but limit is 4")),
                )
            ],
        ),
    ],
)
def test_what_is_refused_pod_by_pod_is_told_once(cluster, reason, messages):
    def control(job):
        for message in messages:
            cluster.warn(job, reason, message)
            wait_for_poll(cluster)
        cluster.end(job, cluster.start_pod(job, "a"))

    cluster.control = control
    _, _, said = run("train", "gpu")
    assert said == [f"Job distill-train: {reason}: {messages[0]}", "log of pod a", END]


def test_an_image_that_cannot_be_pulled_is_told_once(cluster):
    cause = "failed to pull and unpack image: distill:dev: not found"
    back_off = 'Back-off pulling image "distill:dev"'

    def control(job):
        pod = cluster.start_pod(job, "a")
        creating = make_status("Pending", waiting={"reason": "ContainerCreating"})
        cluster.set_status(pod, **creating)
        cluster.warn(pod, "Failed", "Error: ErrImagePull")
        cluster.warn(pod, "Failed", f'Failed to pull image "distill:dev": {cause}')
        wait_for_poll(cluster)
        for state in (
            {"reason": "ImagePullBackOff", "message": back_off},
            {"reason": "ErrImagePull", "message": cause},
            {"reason": "ImagePullBackOff", "message": f"{back_off}: ErrImagePull: {cause}"},
        ):
            cluster.set_status(pod, **make_status("Pending", waiting=state))
            wait_for_poll(cluster)
        cluster.set_status(pod, **creating)
        wait_for_poll(cluster)
        cluster.end(job, pod)

    cluster.control = control
    _, _, said = run("train", "gpu")
    told = f'Pod a: Failed: Failed to pull image "distill:dev": {cause}'
    assert said == [told, "log of pod a", END]


def test_a_deadline_is_told_once(cluster):
    message = "Job was active longer than specified deadline"
    condition = {"status": "True", "reason": "DeadlineExceeded", "message": message}

    def control(job):
        cluster.warn(job, "DeadlineExceeded", message)
        cluster.set_status(job, conditions=[condition | {"type": "FailureTarget"}])
        wait_for_poll(cluster)
        cluster.set_status(job, conditions=[condition | {"type": "Failed"}])

    cluster.control = control
    code, _, said = run("train", "gpu")
    end = f"jobs.batch/distill-train failed: DeadlineExceeded: {message}"
    assert (code, said) == (1, [end])


def test_a_namespace_that_does_not_exist_is_told_in_one_line(cluster):
    code, _, said = run("label", "local", "--namespace=nowhere")
    fix = "kubectl create namespace nowhere, or choose another NAMESPACE"
    assert (code, said) == (2, [f"error: the namespace 'nowhere' does not exist: {fix}"])


def test_keys_that_stand_in_another_namespace_are_told(cluster):
    cluster.keys = {"default"}
    _, _, said = run("label", "gpu", "--namespace=team")
    command = "`kubectl --namespace team apply -f my-secret.yaml`"
    told = f"this namespace has no secret distill-secrets, so the job has no keys: {command}"
    assert said[0] == told
    assert not any("secret" in line for line in run("label", "gpu")[2])
    assert not any("secret" in line for line in run("label", "local", "--namespace=team")[2])


def test_a_ray_job_that_no_operator_takes_up_is_told(cluster):
    def control(job):
        wait_for_poll(cluster, polls=20)
        cluster.set_status(job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    cluster.control = control
    _, _, said = run("label", "ray")
    command = "`kubectl get pods --all-namespaces` shows it"
    told = f"RayJob distill-label-ray: nothing takes it up; does KubeRay run? {command}"
    assert said == [told, "rayjobs.ray.io/distill-label-ray is complete"]


def test_a_quota_that_refuses_a_ray_cluster_is_told(cluster):
    def control(job):
        owner = {"kind": "RayCluster", "metadata": {"name": "ray-1", "namespace": "default"}}
        cluster.warn(owner, "FailedToCreateHeadPod", "exceeded quota")
        cluster.set_status(job, rayClusterName="ray-1", jobDeploymentStatus="Initializing")
        wait_for_poll(cluster)
        cluster.set_status(job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    cluster.control = control
    _, _, said = run("label", "ray")
    assert said[0] == "RayCluster ray-1: FailedToCreateHeadPod: exceeded quota"


def test_a_quota_that_refuses_a_train_job_is_told(cluster, tmp_path):
    def control(job):
        owned = {
            "kind": "Job",
            "metadata": {"name": "distill-train-node-0", "namespace": "default"},
        }
        cluster.warn(owned, "FailedCreate", "exceeded quota")
        wait_for_poll(cluster)
        cluster.end(job, cluster.start_pod(job, "a"))

    cluster.control = control
    _, _, said = run("train", "own", k8s=make_overlay(tmp_path, "trainjob"))
    end = "trainjobs.trainer.kubeflow.org/distill-train is complete"
    told = "Job distill-train-node-0: FailedCreate: exceeded quota"
    assert said == [told, "log of pod a", end]


def test_a_claim_without_a_storage_class_is_told_with_the_fix(cluster):
    message = "no persistent volumes available for this claim and no storage class is set"
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    unbound = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."

    def control(job):
        claim = cluster.objects["persistentvolumeclaims", "default", "distill-runs"]
        cluster.warn(claim, "FailedBinding", message, kind="Normal")
        pod = cluster.start_pod(job, "a")
        volume = {"name": "runs", "persistentVolumeClaim": {"claimName": "distill-runs"}}
        cluster.put(pod | {"spec": pod["spec"] | {"volumes": [volume]}})
        waiting = [unscheduled | {"message": unbound}]
        cluster.set_status(pod, phase="Pending", conditions=waiting)
        wait_for_poll(cluster)
        cluster.end(job, pod)

    cluster.control = control
    _, _, said = run("train", "local")
    fix = "name a StorageClass in the overlay (storageClassName), or make one the default"
    told = f"PersistentVolumeClaim distill-runs: {message}; {fix}"
    assert said == [told, "log of pod a", END]


def test_the_log_reads_as_at_a_terminal(cluster, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")

    def line(message):
        record = {"time": "2026-01-01T12:34:56Z", "level": "info", "message": message}
        return json.dumps(record | {"rows": 12})

    others = [
        '{"time": "now", "level": "info", "message": ""}',
        '{"rows": 12}',
        "{'a': 1}",
        "plain",
    ]

    def control(job):
        pod = cluster.start_pod(job, "a")
        cluster.print(pod, line("forecast:\n  12 calls\n  $0.01"), *others, line("größer"))
        cluster.end(job, pod)

    cluster.control = control
    _, output, _ = run("train", "gpu")
    first = ["12:34:56 forecast:", "  12 calls", "  $0.01"]
    assert output.splitlines()[-8:] == [*first, *others, "12:34:56 größer"]


def test_the_log_comes_before_how_its_container_ended(cluster):
    def control(job):
        pod = cluster.start_pod(job, "a")
        cluster.print(pod, "error: the reason")
        cluster.set_status(pod, **make_status("Failed", terminated={"exitCode": 3}))
        wait_for_poll(cluster)
        cluster.end(job, exit_code=3)

    cluster.control = control
    process = start("train", "gpu", stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert output.splitlines()[-4:] == [
        "k8s-run: log of pod a",
        "error: the reason",
        "k8s-run: Pod a: None: exit code 3",
        "k8s-run: jobs.batch/distill-train failed: PodFailurePolicy: it failed",
    ]


def test_a_pod_that_vanishes_is_told(cluster):
    def control(job):
        pod = cluster.start_pod(job, "a")
        wait_for_poll(cluster)
        cluster.delete(pod)
        wait_for_poll(cluster)
        cluster.end(job, cluster.start_pod(job, "b"))

    cluster.control = control
    _, _, said = run("train", "gpu")
    gone = "pod a is gone: it was deleted; the end of its log may be missing"
    assert said == ["log of pod a", gone, "log of pod b", END]


def test_a_back_off_is_told_once_for_each_failure(cluster):
    def control(job):
        for failed, name in enumerate(("a", "b"), 1):
            pod = cluster.start_pod(job, name)
            cluster.set_status(pod, **make_status("Failed", terminated={"exitCode": 1}))
            cluster.set_status(job, failed=failed)
            wait_for_poll(cluster)
        cluster.end(job, cluster.start_pod(job, "c"))

    cluster.control = control
    _, _, said = run("train", "gpu")
    told = [line for line in said if "back-off" in line]
    assert told == [
        f"{failed} of at most 4 pods failed; the next one starts after a back-off of about {s} s"
        for failed, s in ((1, 10), (2, 20))
    ]
    assert said.index("Pod a: None: exit code 1") < said.index(told[0]) < said.index("log of pod b")


def test_a_ray_job_that_is_tried_again_is_told(cluster):
    def control(job):
        cluster.set_status(job, jobDeploymentStatus="Retrying", failed=1)
        wait_for_poll(cluster)
        cluster.set_status(job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    cluster.control = control
    _, _, said = run("label", "ray")
    assert said[0] == "distill-label-ray: try 1 failed; another one follows, on a new cluster"


def test_the_report_comes_with_the_way_to_it(cluster):
    _, _, said = run("report", "local", "--namespace=team")
    command = "kubectl --namespace team port-forward job/distill-report 8080:8080"
    assert said[0] == f"once it serves: `{command}` in another terminal, then http://localhost:8080"
