import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from fake_cluster import make_status, serve

ROOT = Path(__file__).parent.parent
TRAIN = ("jobs", "default", "distill-train")
LABEL = ("rayjobs", "default", "distill-label-ray")
LABELS = {"app.kubernetes.io/name": "distill", "app.kubernetes.io/component": "label"}
TIMEOUT = 120  # seconds, of which a busy machine may need some

pytestmark = pytest.mark.k8s
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="there is no kubectl to talk to the stand-in cluster"
)


@contextmanager
def started(folder, *arguments, k8s=ROOT / "k8s", **env):
    command = subprocess.Popen(
        [sys.executable, "-I", str(k8s / "run.py"), *arguments, "--poll-seconds=0.1"],
        env={**os.environ, "KUBECONFIG": str(folder / "kubeconfig"), "HOME": str(folder)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        try:
            yield command
        finally:
            command.kill()


def run(folder, *arguments, **options):
    """The exit code, what the job printed (and kubectl), and what the command said."""
    with started(folder, *arguments, **options) as command:
        output, said = command.communicate(timeout=TIMEOUT)
    return command.returncode, output, said


def make_overlay(folder, *components):
    """A copy of k8s/ with an overlay `own`."""
    shutil.copytree(ROOT / "k8s", folder / "k8s")
    overlay = folder / "k8s/overlays/own"
    overlay.mkdir()
    names = [f"../../components/{name}" for name in components]
    kustomization = {"kind": "Kustomization", "resources": ["../../base"], "components": names}
    text = yaml.safe_dump({"apiVersion": "kustomize.config.k8s.io/v1beta1", **kustomization})
    (overlay / "kustomization.yaml").write_text(text, "utf-8")
    return folder / "k8s"


def end(cluster, job, pod, exit_code):
    cluster.end_pod(job, pod, exit_code)
    if exit_code:
        cluster.end_job(job, "Failed", "PodFailurePolicy", f"exit code {exit_code}")
    else:
        cluster.end_job(job, "Complete")


def complete(cluster, job):
    cluster.start_pod(job, "train-a")
    cluster.print("train-a", "train: 3 updates")
    time.sleep(0.5)
    cluster.print("train-a", "train: done")
    end(cluster, job, "train-a", 0)


@needs_kubectl
def test_a_job_completes(tmp_path):
    with serve(complete, tmp_path) as cluster:
        code, output, said = run(tmp_path, "train", "gpu")
        assert (code, output.count("train: 3 updates"), output.count("train: done")) == (0, 1, 1)
        assert said.splitlines() == [
            "k8s-run: log of pod train-a",
            "k8s-run: jobs.batch/distill-train is complete",
        ]
        # It was created suspended, and resumed; of the jobs, it alone was applied.
        assert cluster.objects[TRAIN]["spec"]["suspend"] is False
        jobs = [name for resource, _, name in cluster.objects if resource == "jobs"]
        assert jobs == ["distill-train"]
        kinds = {resource for resource, _, _ in cluster.objects}
        assert {"configmaps", "serviceaccounts", "networkpolicies"} <= kinds


@needs_kubectl
def test_the_exit_code_is_the_job_s(tmp_path):
    def control(cluster, job):
        cluster.start_pod(job, "train-a")
        cluster.print("train-a", "error: there are no finished labels")
        end(cluster, job, "train-a", 3)

    with serve(control, tmp_path):
        code, output, said = run(tmp_path, "train", "gpu")
    assert code == 3
    assert "there are no finished labels" in output
    assert "failed: PodFailurePolicy: exit code 3" in said


@needs_kubectl
def test_make_names_the_exit_code(tmp_path):
    def control(cluster, job):
        cluster.start_pod(job, "label-a")
        end(cluster, job, "label-a", 4)

    with serve(control, tmp_path) as cluster:
        env = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
        command = ["make", "-C", str(ROOT), f"PYTHON={sys.executable}", "k8s-run"]
        command += ["JOB=label", "OVERLAY=local", "NAMESPACE=team"]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT)
        assert ("jobs", "team", "distill-label") in cluster.objects
    assert "Error 4" in result.stderr


@needs_kubectl
def test_the_log_goes_on_from_pod_to_pod(tmp_path):
    def control(cluster, job):
        for name, code in (("train-a", 1), ("train-b", 143), ("train-c", 0)):
            cluster.start_pod(job, name)
            cluster.print(name, f"here is {name}")
            time.sleep(0.3)
            cluster.end_pod(job, name, code)
        cluster.end_job(job, "Complete")

    with serve(control, tmp_path):
        code, output, said = run(tmp_path, "train", "gpu")
    assert code == 0
    lines = [line for line in output.splitlines() if line.startswith("here is")]
    assert lines == ["here is train-a", "here is train-b", "here is train-c"]
    assert [said.count(f"log of pod train-{letter}") for letter in "abc"] == [1, 1, 1]


@needs_kubectl
def test_the_last_pod_s_exit_code_counts(tmp_path):
    def control(cluster, job):
        for name, code in (("train-a", 1), ("train-b", 3)):
            cluster.start_pod(job, name)
            cluster.end_pod(job, name, code)
        cluster.end_job(job, "Failed", "PodFailurePolicy", "")

    with serve(control, tmp_path):
        assert run(tmp_path, "train", "gpu")[0] == 3


@needs_kubectl
def test_after_the_deadline_there_is_no_pod_left(tmp_path):
    def control(cluster, job):
        cluster.end_job(job, "Failed", "DeadlineExceeded", "Job was active longer than deadline")

    with serve(control, tmp_path):
        code, _, said = run(tmp_path, "train", "gpu")
    assert code == 1
    assert "DeadlineExceeded" in said


@needs_kubectl
def test_what_holds_a_pod_up_is_shown(tmp_path):
    def control(cluster, job):
        message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        condition["message"] = message
        cluster.start_pod(job, "train-a", phase="Pending", conditions=[condition])
        time.sleep(0.7)
        pull = {"reason": "ErrImagePull", "message": "failed to pull distill:dev: not found"}
        cluster.set_pod(job, "train-a", **make_status("Pending", waiting=pull))
        time.sleep(0.7)
        cluster.set_pod(job, "train-a", **make_status("Running", running={}))
        cluster.print("train-a", "at last")
        end(cluster, job, "train-a", 0)

    with serve(control, tmp_path):
        code, output, said = run(tmp_path, "train", "gpu")
    assert code == 0
    assert said.count("Insufficient nvidia.com/gpu") == 1
    assert said.count("ErrImagePull: failed to pull distill:dev") == 1
    assert output.count("at last") == 1


@needs_kubectl
def test_a_quota_that_lets_no_pod_be_is_shown(tmp_path):
    def control(cluster, job):
        warn(cluster, job, "FailedCreate", "pods is forbidden: exceeded quota: compute")
        wait_for_polls(cluster)
        cluster.end_job(job, "Failed", "DeadlineExceeded", "")

    with serve(control, tmp_path):
        code, _, said = run(tmp_path, "train", "gpu")
    assert code == 1
    assert said.count("FailedCreate: pods is forbidden: exceeded quota") == 1


@needs_kubectl
def test_a_volume_that_a_pod_waits_for_is_shown(tmp_path):
    def control(cluster, job):
        creating = make_status("Pending", waiting={"reason": "ContainerCreating"})
        cluster.start_pod(job, "train-a", **creating)
        pod = cluster.objects["pods", "default", "train-a"]
        warn(cluster, pod, "FailedScheduling", "0/3 nodes are available")  # that was before
        warn(cluster, pod, "FailedAttachVolume", "Multi-Attach error for volume pvc-1")
        of_before = {"kind": "Pod", "metadata": pod["metadata"] | {"uid": "another"}}
        warn(cluster, of_before, "FailedMount", "volume pvc-0")
        wait_for_polls(cluster)
        end(cluster, job, "train-a", 0)

    with serve(control, tmp_path):
        code, _, said = run(tmp_path, "train", "gpu")
    assert code == 0
    assert said.count("pod train-a: FailedAttachVolume: Multi-Attach error for volume pvc-1") == 1
    assert "FailedScheduling" not in said
    assert "FailedMount" not in said


@needs_kubectl
def test_how_a_container_ended_is_shown(tmp_path):
    def control(cluster, job):
        cluster.start_pod(job, "train-a")
        cluster.end_pod(job, "train-a", 137, "OOMKilled")
        cluster.start_pod(job, "train-b")
        restarted = make_status("Running", running={})
        restarted["containerStatuses"][0]["lastState"] = {
            "terminated": {"exitCode": 1, "reason": "Error"}
        }
        cluster.set_pod(job, "train-b", **restarted)
        wait_for_polls(cluster)
        end(cluster, job, "train-b", 0)

    with serve(control, tmp_path):
        code, _, said = run(tmp_path, "train", "gpu")
    assert code == 0
    assert said.count("pod train-a: OOMKilled: exit code 137") == 1
    assert said.count("pod train-b: Error: exit code 1\n") == 1
    assert "exit code 0" not in said


@needs_kubectl
def test_a_job_of_another_spec_is_replaced(tmp_path):
    old_pods = []

    def control(cluster, job):
        old_pods.extend(key for key in cluster.objects if key[2] == "train-old")
        complete(cluster, job)

    with serve(control, tmp_path) as cluster:
        old = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "distill-train", "labels": {}},
            "spec": {"template": {"spec": {"containers": [{"image": "distill:old"}]}}},
        }
        run_new, cluster.control = cluster.control, lambda job: None
        uid = cluster.put("jobs", "default", old)["metadata"]["uid"]
        cluster.start_pod(old, "train-old")
        cluster.control = run_new
        code, output, _ = run(tmp_path, "train", "gpu")
        new = cluster.objects[TRAIN]
        assert (code, output.count("train: done")) == (0, 1)
        assert new["metadata"]["uid"] != uid
        assert new["spec"]["template"]["spec"]["containers"][0]["image"] == "distill:dev"
        assert not old_pods  # two pods at work on one run would contend for it
        paths = [request.split(" ") for request in cluster.requests]
        verbs = [verb for verb, path in paths if "/jobs" in path and verb != "GET"]
        assert verbs == ["DELETE", "POST", "PATCH"]


def put_job(cluster, resource, name, labels=LABELS, owner=None):
    """A job of before, of which no controller knows."""
    owners = [{"uid": owner["metadata"]["uid"], "kind": owner["kind"]}] if owner else []
    job = {
        "apiVersion": "batch/v1" if resource == "jobs" else "ray.io/v1",
        "kind": "Job" if resource == "jobs" else "RayJob",
        "metadata": {"name": name, "labels": labels, "ownerReferences": owners},
        "spec": {"suspend": True},
    }
    return cluster.put(resource, "default", job)


@needs_kubectl
@pytest.mark.parametrize(
    ("overlay", "new"), [("gpu", ("jobs", "default", "distill-label")), ("ray", LABEL)]
)
def test_earlier_jobs_of_both_kinds_are_replaced(tmp_path, overlay, new):
    pods = []

    def control(cluster, job):
        pods.extend(name for resource, _, name in cluster.objects if resource == "pods")
        if job["kind"] == "Job":
            cluster.end_job(job, "Complete")
        else:
            cluster.set_status(job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    with serve(control, tmp_path) as cluster:
        job = put_job(cluster, "jobs", "distill-label")
        cluster.start_pod(job, "label-old")
        ray_job = put_job(cluster, "rayjobs", "distill-label-ray")
        cluster.start_pod(ray_job, "head-old")
        put_job(cluster, "jobs", "distill-label-ray", owner=ray_job)  # goes with its RayJob
        train = LABELS | {"app.kubernetes.io/component": "train"}
        put_job(cluster, "jobs", "distill-train", train)
        code, output, _ = run(tmp_path, "label", overlay)
        assert code == 0
        left = {key for key in cluster.objects if key[0] in ("jobs", "rayjobs")}
        assert left == {new, TRAIN}
        deleted = sorted(r.rsplit("/", 2)[1:] for r in cluster.requests if r.startswith("DELETE"))
        assert deleted == [["jobs", "distill-label"], ["rayjobs", "distill-label-ray"]]
    assert not pods  # two pods at work on one run would contend for it
    assert 'job.batch "distill-label" deleted' in output
    assert 'rayjob.ray.io "distill-label-ray" deleted' in output


@needs_kubectl
def test_without_kuberay_a_job_runs(tmp_path):
    def control(cluster, job):
        cluster.end_job(job, "Complete")

    with serve(control, tmp_path) as cluster:
        del cluster.groups["ray.io/v1"]
        code, output, said = run(tmp_path, "label", "gpu")
    assert (code, said) == (0, "k8s-run: jobs.batch/distill-label is complete\n")
    assert "ray" not in output


@needs_kubectl
def test_without_kuberay_a_ray_job_takes_no_job_s_place(tmp_path):
    with serve(complete, tmp_path) as cluster:
        del cluster.groups["ray.io/v1"]
        put_job(cluster, "jobs", "distill-label")
        code, _, said = run(tmp_path, "label", "ray")
        assert not [request for request in cluster.requests if not request.startswith("GET")]
    assert code == 1
    assert 'no matches for kind "RayJob"' in said


@needs_kubectl
def test_kueue_alone_resumes_what_it_queues(tmp_path):
    with serve(complete, tmp_path) as cluster:
        k8s = make_overlay(tmp_path, "gpu", "kueue")
        with started(tmp_path, "train", "own", k8s=k8s) as command:
            wait_for(lambda: TRAIN in cluster.objects)
            time.sleep(1)
            assert cluster.objects[TRAIN]["spec"]["suspend"] is True
            job = cluster.objects[TRAIN]
            cluster.put("jobs", "default", job | {"spec": job["spec"] | {"suspend": False}})
            output, said = command.communicate(timeout=TIMEOUT)
    assert (command.returncode, output.count("train: done")) == (0, 1)
    assert "waits in Kueue's queue distill" in said


@needs_kubectl
def test_a_job_set_is_left_to_apply(tmp_path):
    with serve(complete, tmp_path) as cluster:
        k8s = make_overlay(tmp_path, "jobset")
        code, _, said = run(tmp_path, "train", "own", k8s=k8s)
        assert not [key for key in cluster.objects if key[0] == "jobs"]
    assert code == 2
    assert "kubectl apply -k k8s/overlays/own" in said


@needs_kubectl
@pytest.mark.parametrize("exit_code", [0, 5])
def test_a_ray_job(tmp_path, exit_code):
    def control(cluster, job):
        cluster.start_pod(job, "head", "ray-1")
        cluster.print("head", "not for the user")
        cluster.start_pod(job, "submitter")
        cluster.print("submitter", "labels: 12 rows")
        cluster.set_status(job, jobDeploymentStatus="Running", jobStatus="RUNNING")
        time.sleep(0.5)
        cluster.end_pod(job, "submitter", 0)
        message = f"Job entrypoint command failed with exit code {exit_code}, last logs: …"
        cluster.set_status(
            job,
            jobDeploymentStatus="Failed" if exit_code else "Complete",
            jobStatus="FAILED" if exit_code else "SUCCEEDED",
            message=message if exit_code else "",
        )

    with serve(control, tmp_path) as cluster:
        code, output, _ = run(tmp_path, "label", "ray")
        assert LABEL in cluster.objects
    assert code == exit_code
    assert output.count("labels: 12 rows") == 1
    assert "not for the user" not in output


@needs_kubectl
def test_a_ray_job_s_pods_are_its_submitter_s_and_its_cluster_s(tmp_path):
    pull = {"reason": "ErrImagePull", "message": "failed to pull"}
    pulling = {**make_status("Pending"), "initContainerStatuses": [{"state": {"waiting": pull}}]}

    def control(cluster, job):
        cluster.set_status(job, rayClusterName="ray-1", jobDeploymentStatus="Running")
        cluster.start_pod(job, "stray-worker", "ray-0", **pulling)
        cluster.start_pod(job, "worker", "ray-1", **pulling)
        cluster.start_pod(job, "submitter")
        cluster.print("submitter", "labels: 12 rows")
        wait_for_polls(cluster)
        cluster.end_pod(job, "submitter", 0)
        cluster.set_status(
            job, rayClusterName="ray-1", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED"
        )

    with serve(control, tmp_path) as cluster:
        # As in a JobSet: it goes on, and none of this run's is it.
        other = {"name": "distill-label", "namespace": "default", "labels": LABELS, "uid": "other"}
        cluster.start_pod({"kind": "Job", "metadata": other}, "label-other")
        cluster.print("label-other", "not for the user")
        code, output, said = run(tmp_path, "label", "ray")
    assert code == 0
    assert output.count("labels: 12 rows") == 1
    assert "not for the user" not in output
    assert said.splitlines() == [
        "k8s-run: pod worker: ErrImagePull: failed to pull",
        "k8s-run: log of pod submitter",
        "k8s-run: rayjobs.ray.io/distill-label-ray is complete",
    ]


@needs_kubectl
def test_a_ray_job_that_kuberay_refuses(tmp_path):
    def control(cluster, job):
        message = "the RayJob spec is invalid: backoffLimit must be a positive integer"
        cluster.set_status(job, jobDeploymentStatus="ValidationFailed", message=message)

    with serve(control, tmp_path):
        code, _, said = run(tmp_path, "label", "ray")
    assert code == 1
    assert "distill-label-ray failed: the RayJob spec is invalid: backoffLimit must be" in said


@needs_kubectl
def test_a_job_that_somebody_deletes(tmp_path):
    def control(cluster, job):
        cluster.start_pod(job, "train-a")
        time.sleep(0.7)
        cluster.delete("jobs", "default", "distill-train")

    with serve(control, tmp_path):
        code, _, said = run(tmp_path, "train", "gpu")
    assert code == 1
    assert "jobs.batch/distill-train was deleted" in said


@needs_kubectl
def test_ctrl_c_leaves_the_job_running(tmp_path):
    # What a shell starts in the background ignores SIGINT, and would hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def control(cluster, job):
        cluster.start_pod(job, "train-a")
        cluster.print("train-a", "train: 1 update")

    with serve(control, tmp_path) as cluster:
        with started(tmp_path, "train", "gpu") as command:
            while "train: 1 update" not in command.stdout.readline():
                assert command.poll() is None
            command.send_signal(signal.SIGINT)
            _, said = command.communicate(timeout=TIMEOUT)
        assert TRAIN in cluster.objects
    assert command.returncode == 130
    assert "distill-train goes on; `kubectl logs -f job/distill-train`" in said


@needs_kubectl
@pytest.mark.parametrize("seconds", [0, 1])  # the pod has ended by then, or is still at work
def test_a_log_that_breaks_off_goes_on(tmp_path, seconds):
    def control(cluster, job):
        cluster.log_cuts = 1
        cluster.start_pod(job, "train-a")
        cluster.print("train-a", "one", "two")
        time.sleep(seconds)
        cluster.print("train-a", "three")
        end(cluster, job, "train-a", 0)

    with serve(control, tmp_path):
        code, output, _ = run(tmp_path, "train", "gpu")
    assert code == 0
    assert output.splitlines()[-4:] == ["job.batch/distill-train patched", "one", "two", "three"]


@needs_kubectl
def test_a_log_that_the_kubelet_cannot_retrieve_for_a_while_is_printed_in_full(tmp_path):
    def control(cluster, job):
        cluster.log_cuts = 1
        cluster.start_pod(job, "train-a")
        cluster.logs["train-a"].append("unable to retrieve container logs for containerd://0")
        cluster.print("train-a", "one", "two")
        time.sleep(1)
        end(cluster, job, "train-a", 0)

    with serve(control, tmp_path):
        code, output, said = run(tmp_path, "train", "gpu")
    assert code == 0
    assert output.splitlines()[-3:] == ["job.batch/distill-train patched", "one", "two"]
    assert said.count("unable to retrieve container logs for containerd://0") == 1


@needs_kubectl
def test_a_cluster_that_does_not_answer_for_a_while(tmp_path):
    def control(cluster, job):
        cluster.start_pod(job, "train-a")
        time.sleep(0.7)
        cluster.is_failing = True
        time.sleep(1)
        cluster.is_failing = False
        end(cluster, job, "train-a", 0)

    with serve(control, tmp_path):
        code, _, said = run(tmp_path, "train", "gpu")
    assert code == 0
    assert "trying again:" in said


@needs_kubectl
def test_without_a_cluster(tmp_path):
    code, output, said = run(tmp_path, "train", "gpu")
    assert (code, output) == (1, "")
    assert "was refused" in said


def test_without_kubectl(tmp_path):
    code, _, said = run(tmp_path, "train", "gpu", PATH=str(tmp_path))
    assert (code, said) == (2, "k8s-run: kubectl is not installed, or not on the PATH\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", "gpu"), "JOB is 'trian', and should be one of label, train, evaluate"),
        (("train", "gpus"), "OVERLAY is 'gpus', and should be one of gpu, local, ray"),
        (("", ""), "JOB is not given; it should be one of label, train, evaluate"),
        (("train", "../base"), "OVERLAY is '../base', and should be one of gpu, local, ray"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    assert run(tmp_path, *arguments) == (2, "", f"k8s-run: error: {message}\n")


def warn(cluster, item, reason, message):
    """An event of type Warning."""
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "type": "Warning",
        "reason": reason,
        "message": message,
        "metadata": {"name": f"{item['metadata']['name']}.{reason}"},
        "involvedObject": {
            "kind": item["kind"],
            "name": item["metadata"]["name"],
            "uid": item["metadata"]["uid"],
        },
    }
    cluster.put("events", "default", event)


def wait_for_polls(cluster):
    """Until the command has seen the cluster as it is."""
    polls = "GET /api/v1/namespaces/default/pods"
    seen = cluster.requests.count(polls)
    wait_for(lambda: cluster.requests.count(polls) >= seen + 2)


def wait_for(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
