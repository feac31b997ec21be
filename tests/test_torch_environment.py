import os

import pytest

from common.torch_environment import prepare_torch

CPUS = len(os.sched_getaffinity(0))


def limit(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("cfs", "cpu.cfs").replace("max", "cpu.max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    environment: dict[str, str] = {}
    prepare_torch(environment, folder)
    return environment.get("OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({"max": "100000 100000"}, "1"),
        ({"max": "50000 100000"}, "1"),
        ({"max": "max 100000"}, None),
        ({"max": f"{CPUS * 100000} 100000"}, None),
        ({"cpu__cfs_quota_us": "100000", "cpu__cfs_period_us": "100000"}, "1"),
        ({"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
@pytest.mark.skipif(CPUS < 2, reason="there is one CPU")
def test_the_threads_follow_the_containers_limit(tmp_path, files, threads):
    assert limit(tmp_path, **files) == threads


@pytest.mark.parametrize("own", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_sets_stays(tmp_path, own):
    (tmp_path / "cpu.max").write_text("100000 100000")
    given = {"OMP_NUM_THREADS": "7", "LRU_CACHE_CAPACITY": "9", own: "x"}
    environment = dict(given)
    prepare_torch(environment, tmp_path)
    assert environment == given | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
    environment = {}
    prepare_torch(environment, tmp_path)
    assert environment["GOMP_SPINCOUNT"] == "3000"
