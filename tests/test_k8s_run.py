import shutil
import signal
import subprocess
import sys
import time

import pytest

from support.fake_kubernetes import make_status
from support.k8s_run import ROOT, TIMEOUT, make_overlay, run, start, wait_for_poll

TRAIN = ("jobs", "default", "distill-train")

pytestmark = [
    pytest.mark.k8s,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl"),
]


def test_a_job_is_applied_resumed_and_waited_for(cluster):
    code, output, said = run("train", "gpu")
    assert (code, output.splitlines()[-1]) == (0, "done")
    assert said == ["log of pod pod-a", "jobs.batch/distill-train is complete"]
    assert cluster.objects[TRAIN]["spec"]["suspend"] is False  # it is created suspended
    kinds = [resource for resource, _, _ in cluster.objects]
    assert (kinds.count("jobs"), kinds.count("configmaps")) == (1, 1)


@pytest.mark.parametrize(("codes", "expected"), [([3], 3), ([1, 3], 3), ([], 1)])
def test_the_exit_code_is_that_of_the_last_pod_s_container(cluster, codes, expected):
    def control(job):
        for number, code in enumerate(codes):
            pod = cluster.start_pod(job, f"train-{number}")
            cluster.set_status(pod, **make_status("Failed", terminated={"exitCode": code}))
        cluster.end(job, exit_code=1)

    cluster.control = control
    code, _, said = run("train", "gpu")
    assert code == expected
    assert said[-1] == "jobs.batch/distill-train failed: PodFailurePolicy: it failed"


def test_make_runs_a_job_in_a_namespace_and_names_its_exit_code(cluster):
    cluster.control = lambda job: cluster.end(job, cluster.start_pod(job, "a"), exit_code=4)
    command = ["make", "-C", str(ROOT), f"PYTHON={sys.executable}", "k8s-run"]
    command += ["JOB=label", "OVERLAY=local", "NAMESPACE=team"]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    assert "Error 4" in result.stderr
    assert ("jobs", "team", "distill-label") in cluster.objects


@pytest.mark.parametrize("unretrieved", [0, 1])
def test_the_log_goes_on_from_pod_to_pod_with_each_line_once(cluster, unretrieved):
    def control(job):
        cluster.unretrieved_logs = unretrieved
        for name in ("train-a", "train-b"):
            pod = cluster.start_pod(job, name)
            for line in ("one", "two"):
                cluster.print(pod, f"{name}: {line}")
                wait_for_poll(cluster)
            cluster.set_status(pod, **make_status("Failed", terminated={"exitCode": 1}))
        cluster.end(job)

    cluster.control = control
    code, output, said = run("train", "gpu")
    lines = [f"train-{pod}: {line}" for pod in "ab" for line in ("one", "two")]
    assert (code, output.splitlines()[-4:]) == (0, lines)
    assert "patched" in output.splitlines()[-5]
    reason = "pod train-a: unable to retrieve container logs for containerd://0"
    assert said.count(reason) == unretrieved


def test_what_holds_a_job_up_and_how_containers_ended_is_said_once(cluster):
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    pull = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    killed = {"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}

    def warn(item, reason, message):
        cluster.warn(item, reason, message)
        wait_for_poll(cluster)

    def control(job):
        warn(job, "FailedCreate", "exceeded quota")
        pod = cluster.start_pod(job, "a")
        for status in (
            {"phase": "Pending", "conditions": [unscheduled | {"message": "no GPU"}]},
            {"phase": "Pending", "initContainerStatuses": [{"state": pull}]},
            {"phase": "Running", "containerStatuses": [killed]},
            make_status("Pending", waiting={"reason": "ContainerCreating"}),
        ):
            cluster.set_status(pod, **status)
            wait_for_poll(cluster)
        warn(pod, "FailedScheduling", "no GPU")  # that was before
        warn(pod, "FailedAttachVolume", "pvc-1 is in use")
        cluster.end(job, pod)

    cluster.control = control
    code, _, said = run("train", "gpu")
    assert code == 0
    assert [line for line in said if ": " in line] == [
        "Job distill-train: FailedCreate: exceeded quota",
        "Pod a: Unschedulable: no GPU",
        "Pod a: ErrImagePull: not found",
        "Pod a: OOMKilled: exit code 137",
        "Pod a: FailedAttachVolume: pvc-1 is in use",
    ]


@pytest.mark.parametrize(("overlay", "new"), [("gpu", "label"), ("ray", "label-ray")])
def test_the_job_of_the_last_time_is_replaced_whatever_its_kind(cluster, overlay, new):
    pods = []

    def control(job):
        pods.extend(name for resource, _, name in cluster.objects if resource == "pods")
        cluster.end(job)
        if job["kind"] == "RayJob":
            cluster.set_status(job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    cluster.control = control
    for kind, name in (("Job", "label"), ("RayJob", "label-ray"), ("Job", "train")):
        component = {"app.kubernetes.io/component": name.removesuffix("-ray")}
        labels = {"app.kubernetes.io/name": "distill"} | component
        old = {"kind": kind, "metadata": {"name": f"distill-{name}", "labels": labels}}
        old["apiVersion"] = "batch/v1" if kind == "Job" else "ray.io/v1"
        cluster.start_pod(cluster.put(old | {"spec": {"suspend": True}}), f"{name}-old")
    code, output, _ = run("label", overlay)
    assert code == 0
    left = {name for resource, _, name in cluster.objects if resource in ("jobs", "rayjobs")}
    assert left == {f"distill-{new}", "distill-train"}
    assert pods == ["train-old"]  # two pods at work on one run would contend for it
    assert 'job.batch "distill-label" deleted' in output
    assert 'rayjob.ray.io "distill-label-ray" deleted' in output


def test_a_ray_job_that_is_suspended_is_resumed(cluster):
    def control(job):
        cluster.print(cluster.start_pod(job, "submitter"), "predict: 12 rows")
        cluster.set_status(job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    cluster.control = control
    code, output, _ = run("predict", "ray")
    assert (code, "predict: 12 rows" in output) == (0, True)
    job = cluster.objects["rayjobs", "default", "distill-predict-ray"]
    assert job["spec"]["suspend"] is False  # it is created suspended


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_train_job_runs_in_place_of_the_job(cluster, tmp_path, exit_code):
    def control(job):
        pod = cluster.start_pod(job, "distill-train-node-0-0-x")
        cluster.print(pod, "train: 12 updates")
        cluster.end(job, pod, exit_code=exit_code)

    cluster.control = lambda job: cluster.end(job, cluster.start_pod(job, "of-the-job"))
    run("train", "gpu")
    cluster.control = control
    code, output, said = run("train", "own", k8s=make_overlay(tmp_path, "gpu", "trainjob"))
    assert (code, output.splitlines()[-1]) == (exit_code, "train: 12 updates")
    end = "is complete" if exit_code == 0 else "failed: PodFailurePolicy: it failed"
    assert said[-1] == f"trainjobs.trainer.kubeflow.org/distill-train {end}"
    jobs = {key[0] for key in cluster.objects if key[2] == "distill-train"}
    assert jobs == {"trainjobs", "trainingruntimes"}


def test_without_kuberay_a_job_runs_and_a_ray_job_changes_nothing(cluster):
    del cluster.groups["ray.io/v1"]
    assert run("label", "gpu")[0] == 0
    cluster.requests.clear()
    code, _, said = run("label", "ray")
    fix = "install KubeRay (docs/kubernetes.md#components), or choose another OVERLAY"
    assert (code, said) == (2, [f"error: the cluster does not know RayJob: {fix}"])
    assert {request.split()[0] for request in cluster.requests} == {"GET"}


def test_kueue_alone_resumes_what_it_queues(cluster, tmp_path):
    process = start("train", "own", k8s=make_overlay(tmp_path, "gpu", "kueue"))
    wait_for_poll(cluster)
    job = cluster.objects[TRAIN]
    assert job["spec"]["suspend"] is True
    cluster.put(job | {"spec": job["spec"] | {"suspend": False}})
    _, said = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, "waits in Kueue's queue distill" in said) == (0, True)


@pytest.mark.parametrize(
    ("end", "message", "exit_code"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "is complete", 0),
        ({"jobDeploymentStatus": "Failed", "message": "exit code 5"}, "failed: exit code 5", 5),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "no"}, "failed: no", 1),
    ],
)
def test_a_ray_job_has_its_submitter_s_log_and_exit_code_and_its_cluster_s_pods(
    cluster, end, message, exit_code
):
    pulling = make_status("Pending", waiting={"reason": "ErrImagePull", "message": "not found"})

    def control(job):
        cluster.set_status(job, rayClusterName="ray-1", jobDeploymentStatus="Running")
        cluster.print(cluster.start_pod(job, "head", "ray-1"), "not for the user")
        cluster.set_status(cluster.start_pod(job, "worker", "ray-1"), **pulling)
        cluster.set_status(cluster.start_pod(job, "stray", "ray-0"), **pulling)
        cluster.print(cluster.start_pod(job, "submitter"), "labels: 12 rows")
        wait_for_poll(cluster)
        cluster.set_status(job, rayClusterName="ray-1", **end)

    cluster.control = control
    code, output, said = run("label", "ray")
    assert (code, output.count("labels: 12 rows")) == (exit_code, 1)
    assert "not for the user" not in output
    end = f"rayjobs.ray.io/distill-label-ray {message}"
    assert said == ["log of pod submitter", "Pod worker: ErrImagePull: not found", end]


@pytest.mark.parametrize("end", ["deleted", "replaced by another one"])
def test_a_job_that_somebody_deletes_or_replaces_ends_the_command(cluster, end):
    def control(job):
        wait_for_poll(cluster)
        if end == "deleted":
            cluster.delete(job)
        else:
            cluster.put(job | {"metadata": job["metadata"] | {"uid": "another"}})

    cluster.control = control
    code, _, said = run("train", "gpu")
    assert (code, said) == (1, [f"error: jobs.batch/distill-train was {end}"])


def test_ctrl_c_leaves_the_job_running(cluster):
    # What a shell starts in the background ignores SIGINT, and would hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cluster.control = lambda job: cluster.print(cluster.start_pod(job, "train-a"), "1 update")
    process = start("train", "gpu")
    while "1 update" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, TRAIN in cluster.objects) == (130, True)
    assert "distill-train goes on; `kubectl logs -f job/distill-train`" in said


def test_a_cluster_that_fails_to_answer_for_a_while_is_waited_for(cluster):
    def control(job):
        wait_for_poll(cluster)
        cluster.is_failing = True
        time.sleep(1)
        cluster.is_failing = False
        cluster.end(job)

    cluster.control = control
    code, _, said = run("train", "gpu")
    assert (code, said[0].startswith("trying again: `kubectl get` failed")) == (0, True)


@pytest.mark.parametrize("component", ["", "jobset"])
def test_the_predict_job_runs_in_any_overlay(cluster, tmp_path, component):
    k8s = make_overlay(tmp_path, component) if component else ROOT / "k8s"
    code, output, _ = run("predict", "own" if component else "local", k8s=k8s)
    assert (code, output.splitlines()[-1]) == (0, "done")
    jobs = {name for resource, _, name in cluster.objects if resource in ("jobs", "jobsets")}
    assert jobs == {"distill-predict"}


def test_a_wrong_job_or_overlay_is_told_with_those_that_there_are(cluster, tmp_path):
    k8s = make_overlay(tmp_path, "jobset")
    for arguments, message in (
        (("trian", "gpu"), "should be one of evaluate, label, predict, report, train"),
        (("train", "../base"), "invalid choice: '../base' (choose from"),
        (
            ("train", "own"),
            "should be one of predict, report; this overlay's JobSet runs the others: kube",
        ),
    ):
        code, _, said = run(*arguments, k8s=k8s)
        assert (code, message in said[-1]) == (2, True)
    assert not cluster.objects


def test_a_missing_cluster_or_kubectl_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    code, _, said = run("train", "gpu")
    assert (code, "was refused" in said[0]) == (1, True)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, said = run("train", "gpu")
    assert (code, said) == (2, ["kubectl is not installed, or not on the PATH"])
