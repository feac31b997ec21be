"""LiteLLM's proxy, a real gateway, before the stand-in teacher."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from peers.conftest import PEERS, running_peer, running_stand_in
from support.commands import run_job

LITELLM = PEERS / "litellm"
KEY = "sk-of-the-gateway-1234"
CONFIG = """
model_list:
  - model_name: big
    litellm_params:
      model: openai/stand-in
      api_base: {url}
      api_key: none
      input_cost_per_token: 0.000001
      output_cost_per_token: 0.000002
litellm_settings:
  telemetry: false
general_settings:
  master_key: {key}
"""
pytestmark = pytest.mark.skipif(not LITELLM.exists(), reason="make test-peers installs LiteLLM")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("litellm")
    command = [str(LITELLM), "--config", "config.yaml", "--host", "127.0.0.1", "--port", "{port}"]
    with running_stand_in("--reasoning") as url:
        (folder / "config.yaml").write_text(CONFIG.format(url=url, key=KEY), "utf-8")
        with running_peer(command, folder, "/health/liveliness") as address:
            yield f"{address}/v1"


@pytest.fixture
def label(gateway, tmp_path):
    source = tmp_path / "texts.jsonl"
    texts = [json.dumps({"text": f"She go to school {i}."}) for i in range(60)]
    source.write_text("\n".join(texts), "utf-8")

    def label(**settings):
        given = {
            "DATA__SOURCE": source,
            "DATA__TEXT_COLUMN": "text",
            "TEACHER__BASE_URL": gateway,
            "TEACHER__MODEL": "big",
            "TEACHER__API_KEY": KEY,
        }
        return run_job("label", tmp_path, **given | settings)

    return label


def read_labels(folder: Path) -> list[dict[str, object]]:
    files = (folder / "runs/default/labels").glob("*.parquet")
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_requests_adapt_through_a_gateway_and_its_costs_are_believed(label, tmp_path):
    done = label(LABEL__MAX_COST_USD=1)
    assert done.returncode == 0, done.stderr
    rows = read_labels(tmp_path)
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["reasoning"] for row in rows)
    manifest = json.loads((tmp_path / "runs/default/labels/_manifest.json").read_text("utf-8"))
    summary = manifest["summary"]
    assert summary["adaptations"] == ["max_completion_tokens for max_tokens", "no temperature"]
    assert summary["calls"] <= 63
    dollars = (summary["prompt_tokens"] + 2 * summary["completion_tokens"]) / 1e6
    assert summary["cost_usd"] == pytest.approx(dollars, abs=1e-6)


def test_the_gateway_s_answer_to_a_wrong_key_ends_the_job(label):
    """400 "No connected db."."""
    done = label(TEACHER__API_KEY="sk-wrong-key-12345678")
    assert done.returncode in (3, 4), done.stderr
    assert "No connected db" in done.stderr.splitlines()[-1]


def test_a_model_that_the_gateway_lacks_ends_the_job(label):
    done = label(TEACHER__MODEL="other")
    assert done.returncode == 4, done.stderr
    assert "DISTILL_TEACHER__MODEL" in done.stderr.splitlines()[-1]
