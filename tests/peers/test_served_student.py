"""A merged student behind `transformers serve`, as a system beside itself."""

import json

import pytest

from jobs import evaluate
from peers.conftest import PEERS, running_peer
from support.trained_run import make_trained_run


def test_a_served_student_has_the_figures_of_the_merged_one(settings, tmp_path, in_fp32):
    program = PEERS / "transformers"
    if not program.exists():
        pytest.skip("make test-peers installs transformers")
    _, storage = make_trained_run(settings, tmp_path)
    model = storage.path("merged")
    command = [str(program), "serve", model, "--host", "127.0.0.1", "--port", "{port}"]
    with running_peer([*command, "--dtype", "float32"], tmp_path, "/health") as url:
        served = {"base_url": f"{url}/v1", "model": model}
        evaluate.main(settings(EVALUATE__ENDPOINTS=json.dumps({"served": served})))
    metrics = storage.read_json("metrics.json")
    served, merged = (metrics["systems"][name] for name in ("served", "merged"))
    assert {n: served[n] for n in metrics["metrics"]} == {n: merged[n] for n in metrics["metrics"]}
    files = (f"predictions/{name}.parquet" for name in ("served", "merged"))
    served, merged = (storage.read_table(file)["prediction"] for file in files)
    assert served == merged
