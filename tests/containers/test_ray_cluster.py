"""The label job on a Ray cluster: the ray overlay's head, workers and submitter as containers."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from support.docker_engine import HARDENED, docker, give
from support.pods import Cluster, render_with, wait

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl")

KEY = "sk-of-the-cluster"
FEW_ACTORS = {"DISTILL_LABEL__ACTORS": "4"}
LITTLE = 0.06
"""CPUs of a worker that is to be the limit."""
ROWS, REQUESTS_PER_MINUTE, MAX_CONCURRENCY = 600, 600, 16
COUNT = (
    "import pyarrow; from common.environment import load_settings;"
    "from common.run.storage import RunStorage; storage = RunStorage(load_settings());"
    "names = [n for n in storage.list_files('labels') if n.endswith('.parquet')];"
    "table = pyarrow.concat_tables([storage.read_table(name) for name in names]);"
    "print(table.num_rows, len(set(table['id'].to_pylist())), set(table['status'].to_pylist()))"
)


FIND_THE_KEEPER = """
from ray.util.state import list_actors, list_nodes
head = [node.node_id for node in list_nodes("http://head:8265") if node.is_head_node]
keepers = list_actors("http://head:8265", filters=[("class_name", "=", "QuotaKeeper")])
print([keeper.node_id for keeper in keepers] == head)
"""


@pytest.fixture(scope="module")
def settings(image, network, s3) -> dict[str, str]:
    """Of all containers, with a teacher beside them."""
    places = [f"--network={network}", "--network-alias=teacher", "--entrypoint=python"]
    script = Path(__file__).with_name("slow_teacher.py").read_text()
    docker("run", "--detach", *HARDENED, *places, image, "-c", script)
    return {
        "DISTILL_STORAGE__ROOT": s3["DISTILL_STORAGE__ROOT"],
        "DISTILL_DATA__SOURCE": "builtin",
        "DISTILL_DATA__TRAIN_LIMIT": str(ROWS),
        "DISTILL_TEACHER__BASE_URL": "http://teacher:8000/v1",
        "DISTILL_TEACHER__MODEL": "slow",
        "DISTILL_TEACHER__MAX_CONCURRENCY": str(MAX_CONCURRENCY),
        "DISTILL_TEACHER__REQUESTS_PER_MINUTE": str(REQUESTS_PER_MINUTE),
        "AWS_ENDPOINT_URL": s3["AWS_ENDPOINT_URL"],
        "AWS_DEFAULT_REGION": s3["AWS_DEFAULT_REGION"],
    }


@pytest.fixture(scope="module")
def secrets(s3) -> dict[str, str]:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return {name: s3[name] for name in names} | {"DISTILL_TEACHER__API_KEY": KEY}


@pytest.fixture(scope="module")
def cluster(image, network, settings, secrets, tmp_path_factory) -> Cluster:
    """A head without CPUs and two workers."""
    manifests = render_with("ray", settings, image, tmp_path_factory.mktemp("ray"))
    cluster = Cluster(manifests, network, secrets)
    options = "--block --disable-usage-stats --dashboard-agent-listen-port=52365"
    head = f"ulimit -n 65536; ray start --head --num-cpus=0 --dashboard-host=0.0.0.0 {options}"
    cluster.head = cluster.start("head", "bash", "-lc", head)
    for name in ("one", "two"):
        start_worker(cluster, name, options)
    count = "ray list nodes --address=http://head:8265 | grep -c ALIVE"
    ready = f"until {count} | grep 3; do sleep 1; done"
    code, log = wait(cluster.start("submitter", "bash", "-c", ready), seconds=180)
    assert code == 0, log
    return cluster


def start_worker(cluster: Cluster, name: str, options: str) -> str:
    join = f"until ray start --address=head:6379 --num-cpus=1 {options}; do sleep 1; done"
    cluster.workers.append(cluster.start("worker", "bash", "-c", join, alias=name))
    return cluster.workers[-1]


def submit(cluster: Cluster, run: str, **settings: str) -> str:
    """Submits the job as a user does, with the name of the run; gives the submitter's container."""
    environment = json.dumps({"env_vars": {"DISTILL_RUN": run} | FEW_ACTORS | settings})
    options = ["--address=http://head:8265", "--runtime-env-json", environment]
    command = ["ray", "job", "submit", *options, "--", "python", "-m", "jobs.label"]
    return cluster.start("submitter", *command)


def wait_for_answers(submitter: str, count: int) -> None:
    """Waits for the progress to reach the submitter."""
    answers, deadline = 0, time.monotonic() + 180
    while answers < count:
        log = docker("logs", submitter, check=False)
        assert time.monotonic() < deadline, log
        found = re.findall(r"([\d,]+) of [\d,]+ answers", log)
        answers = max((int(number.replace(",", "")) for number in found), default=0)
        time.sleep(0.5)


def list_calls(cluster: Cluster) -> list[float]:
    """When the teacher was called, in seconds."""
    return ask_teacher(cluster, "calls")


def ask_teacher(cluster: Cluster, what: str) -> list:
    """What it remembers of all calls."""
    ask = cluster.start("submitter", "wget", "-qO-", f"http://teacher:8000/{what}")
    code, calls = wait(ask)
    assert code == 0
    return json.loads(calls)


def test_a_worker_may_die_in_the_middle(cluster, image, network, settings, secrets):
    submitter = submit(cluster, "killed")
    wait_for_answers(submitter, ROWS // 5)
    code, is_with_the_driver = wait(cluster.start("submitter", "python", "-c", FIND_THE_KEEPER))
    assert (code, is_with_the_driver) == (0, "True")
    docker("kill", cluster.workers[0])
    code, log = wait(submitter)
    assert code == 0, log
    assert re.search(rf"labels: inputs {ROWS}, ok {ROWS}, failed 0", log)
    moments = list_calls(cluster)
    assert ROWS <= len(moments) <= ROWS + MAX_CONCURRENCY  # of the dead worker's at most
    for start in moments:  # the nodes keep one quota together
        in_a_minute = [moment for moment in moments if start <= moment < start + 60]
        assert len(in_a_minute) <= REQUESTS_PER_MINUTE * 1.02 + 1
    places = [f"--network={network}", *give(settings | secrets | {"DISTILL_RUN": "killed"})]
    counts = docker("run", "--rm", *HARDENED, *places, "--entrypoint=python", image, "-c", COUNT)
    assert counts == f"{ROWS} {ROWS} {{'ok'}}"
    code, log = wait(submit(cluster, "killed"))
    assert (code, "labels: already done" in log) == (0, True)


def test_no_key_is_in_the_jobs_metadata(cluster):
    address = "http://head:8265"
    ask = f"wget -qO- {address}/api/jobs/; ray list actors --address={address} --detail"
    code, text = wait(cluster.start("submitter", "bash", "-c", ask))
    assert code == 0
    assert "jobs.label" in text
    assert "LabelActor" in text
    assert KEY not in text


KILL = """
import psutil
for process in psutil.process_iter(["cmdline"]):
    if (process.info["cmdline"] or [])[1:3] == ["-m", "jobs.label"]:
        process.kill()
"""


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_driver_that_ended_is_submitted_again(cluster, way):
    before = len(list_calls(cluster))
    submitter = submit(cluster, way, DISTILL_DATA__TRAIN_LIMIT="200")
    wait_for_answers(submitter, 30)
    if way == "stop":
        log = docker("logs", submitter, check=False)
        (job,) = set(re.findall(r"raysubmit_\w+", log))
        address = "--address=http://head:8265"
        code, log = wait(cluster.start("submitter", "ray", "job", "stop", address, job))
        assert code == 0, log
        assert log.count("has not exited yet") < 30, log  # one a second: Ray waits for no zombie
    else:
        docker("exec", cluster.head, "python", "-c", KILL)
    wait(submitter)
    code, log = wait(submit(cluster, way, DISTILL_DATA__TRAIN_LIMIT="200"))
    assert code == 0, log
    assert "labels: inputs 200, ok 200" in log
    lost = 0 if way == "stop" else MAX_CONCURRENCY
    assert 200 <= len(list_calls(cluster)) - before <= 200 + lost


def test_nodes_come_and_go_in_the_middle(cluster, image, network, settings, secrets):
    """Two workers have room for two of four actors; one is killed, and two others join."""
    options = "--block --disable-usage-stats --dashboard-agent-listen-port=52365"
    first = [start_worker(cluster, name, options) for name in ("three", "four")]
    docker("kill", cluster.workers[1])
    before = len(list_calls(cluster))
    # For two minutes, with more blocks of 256 rows than the 8 that each actor takes ahead.
    rows, quota, most = 7_500, 4_000, 64
    own = {"DISTILL_LABEL__ACTORS": "4", "DISTILL_LABEL__ACTOR_CPUS": "1"}
    own |= {"DISTILL_TEACHER__MAX_CONCURRENCY": str(most)}
    own |= {"DISTILL_DATA__TRAIN_LIMIT": str(rows)}
    own |= {"DISTILL_TEACHER__REQUESTS_PER_MINUTE": str(quota)}
    submitter = submit(cluster, "changing", **own)
    wait_for_answers(submitter, 200)
    docker("kill", first[0])
    joined = [start_worker(cluster, name, options) for name in ("five", "six")]
    code, log = wait(submitter)
    assert code == 0, log
    assert re.search(rf"labels: inputs {rows}, ok {rows}, failed 0", log)
    moments, callers = list_calls(cluster)[before:], ask_teacher(cluster, "callers")[before:]
    assert rows <= len(moments) <= rows + most
    for start in moments:
        in_a_minute = [moment for moment in moments if start <= moment < start + 60]
        # a second of burst, and calls that a busy machine holds back and lets go together
        assert len(in_a_minute) <= quota * 1.02 + 2 * most
    address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    places = {docker("inspect", f"--format={address}", node) for node in joined}
    assert places & set(callers), "no node that joined has called the teacher"
    places = [f"--network={network}", *give(settings | secrets | {"DISTILL_RUN": "changing"})]
    counts = docker("run", "--rm", *HARDENED, *places, "--entrypoint=python", image, "-c", COUNT)
    assert counts == f"{rows} {rows} {{'ok'}}"


def test_a_third_worker_adds_to_the_rate(cluster):
    """Two workers have little of a CPU each, so that they are what limits the rate."""
    options = "--block --disable-usage-stats --dashboard-agent-listen-port=52365"
    for worker in cluster.workers:
        docker("kill", worker, check=False)
    nodes = [start_worker(cluster, name, options) for name in ("seven", "eight")]
    before = len(list_calls(cluster))
    many = {"DISTILL_TEACHER__MAX_CONCURRENCY": "300", "DISTILL_DATA__TRAIN_LIMIT": "0"}
    many |= {"DISTILL_TEACHER__REQUESTS_PER_MINUTE": "1000000"}
    own = {"DISTILL_LABEL__ACTORS": "3", "DISTILL_LABEL__ACTOR_CPUS": "1"}
    submitter = submit(cluster, "growing", **own, **many)
    wait_for_answers(submitter, 100)
    for node in nodes:
        docker("update", f"--cpus={LITTLE}", node)
    time.sleep(3)
    start, _ = time.time(), time.sleep(8)
    end = time.time()
    third = start_worker(cluster, "nine", options)
    address = docker(
        "inspect", "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", third
    )
    while address not in set(ask_teacher(cluster, "callers")[before:]):
        time.sleep(1)
    later, _ = time.time(), time.sleep(8)
    last = time.time()
    calls = list(zip(list_calls(cluster), ask_teacher(cluster, "callers"), strict=False))[before:]
    two = sum(start <= moment < end for moment, _ in calls) / (end - start)
    new = sum(later <= moment < last for moment, who in calls if who == address) / (last - later)
    print(f"calls a second: two workers {two:.0f}, the third {new:.0f}")
    docker("kill", submitter, check=False)
    assert new > 0.1 * two


def test_a_driver_elsewhere_is_told_how_to_submit(cluster, image, network, settings, secrets):
    own = {"DISTILL_RUN": "elsewhere", "DISTILL_DATA__TRAIN_LIMIT": "50"}
    own |= {"RAY_ADDRESS": "head:6379"}
    places = [f"--network={network}", *give(settings | secrets | own)]
    code, log = wait(docker("run", "--detach", *HARDENED, *places, image, "jobs.label"))
    assert (code, "`ray job submit --address http://head:8265" in log) == (2, True), log
