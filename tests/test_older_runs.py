"""A run folder that version 0.1 made goes on: nothing is paid for, trained or asked again.

support/run_of_version_0_1 was made by `jobs.pipeline` of that version with the settings below.
"""

import json
import shutil
from pathlib import Path

import pytest

from common.errors import InputError
from common.run.manifest import read_manifest
from common.run.steps import ADAPTER, LABELS, PREDICTIONS
from common.run.storage import RunStorage
from common.sections import TrainSettings
from common.settings import find_default
from jobs import evaluate, label, pipeline, train

MADE = Path(__file__).parent / "support" / "run_of_version_0_1"
SETTINGS = {
    "RUN": "old",
    "DATA__SOURCE": "builtin",
    "DATA__TRAIN_LIMIT": 80,
    "DATA__TEST_LIMIT": 40,
    "TEACHER__BASE_URL": "builtin",
    "STUDENT__MODEL": "builtin",
    "TRAIN__EPOCHS": 1,
    "TRAIN__LORA_RANK": 8,
    "TRAIN__EDIT_WEIGHT": 1,
    "EVALUATE__MAX_NEW_TOKENS": 64,
}


@pytest.fixture
def old(settings, tmp_path):
    shutil.copytree(MADE, tmp_path / "runs/old")
    return settings(**SETTINGS)


def count_calls(monkeypatch):
    calls = []

    def refuse(*arguments):
        calls.append(arguments)
        raise AssertionError("the teacher is asked, or the student trained, again")

    monkeypatch.setattr(label.Session, "ask", refuse)
    monkeypatch.setattr(train, "train", refuse)
    monkeypatch.setattr(evaluate.SystemRunner, "ask", refuse)
    return calls


def test_every_step_is_found_done_and_reported_on(old, tmp_path, monkeypatch, capsys):
    calls = count_calls(monkeypatch)
    pipeline.main(old)
    assert not calls
    assert "| Teacher                | 90.0%" in capsys.readouterr().out
    page = (tmp_path / "runs/old/report.html").read_text("utf-8")
    assert all(fact in page for fact in ("stand-in", "116,736", "80 ok", "distill 0.1.0"))


def test_labels_are_made_again_from_the_journal_and_the_rest_stays_done(old, tmp_path, monkeypatch):
    storage = RunStorage(old)
    before = read_labels(storage)
    shutil.rmtree(tmp_path / "runs/old/labels")
    monkeypatch.setattr(train, "train", lambda *arguments: pytest.fail("trained again"))
    monkeypatch.setattr(label, "make_lane", lambda settings: pytest.fail("asked again"))
    pipeline.main(old)
    assert read_labels(storage) == before


def read_labels(storage):
    (name,) = [name for name in storage.list_files("labels") if name.endswith(".parquet")]
    return {row["id"]: row["label"] for row in storage.read_table(name).to_pylist()}


def test_another_setting_is_still_an_error(old, settings):
    with pytest.raises(InputError, match=r"train\.lora_rank was 8 and is 4"):
        pipeline.main(settings(TRAIN__LORA_RANK=4))
    with pytest.raises(InputError, match=r"teacher\.max_tokens was 512 and is 100"):
        pipeline.main(settings(TRAIN__LORA_RANK=8, TEACHER__MAX_TOKENS=100))


def test_a_setting_that_is_added_leaves_finished_runs_done(old, monkeypatch):
    """As issue after issue does: a field with a default, in a section that results depend on."""

    class More(TrainSettings):
        objective: str = "supervised"

    with_more = old.model_copy(update={"train": More(**old.train.model_dump())})
    calls = count_calls(monkeypatch)
    pipeline.main(with_more)
    assert not calls
    other = More(**old.train.model_dump() | {"objective": "another"})
    with pytest.raises(InputError, match=r"train\.objective was None and is 'another'"):
        train.main(old.model_copy(update={"train": other}))


@pytest.mark.parametrize("name", ["TEACHER__BASE_URL", "OPENAI_BASE_URL", None])
def test_a_default_url_of_the_teacher_counts(old, settings, monkeypatch, name):
    """Wherever it comes from: it is what the labels depend on most."""
    url, other = "https://one.example/v1", "https://two.example/v1"
    monkeypatch.delenv("DISTILL_TEACHER__BASE_URL")
    if name == "OPENAI_BASE_URL":
        monkeypatch.setenv(name, url)
    own = settings(**{name: url} if name == "TEACHER__BASE_URL" else {}, TEACHER__MODEL="big")
    expected = url if name else "https://api.openai.com/v1"
    assert own.fingerprint("teacher")["teacher.base_url"] == expected
    storage = RunStorage(own)
    content = storage.read_json("labels/manifest.json")
    content["fingerprint"] |= {"teacher.base_url": expected, "teacher.model": "big"}
    storage.write_json("labels/manifest.json", content)
    label.main(own)  # is found done
    with pytest.raises(InputError, match=rf"teacher\.base_url was '{expected}' and is '{other}'"):
        label.main(settings(TEACHER__BASE_URL=other))


def test_a_finished_run_needs_no_price_file(old, settings):
    label.main(settings(TEACHER__PRICES="/nowhere.toml"))
    evaluate.main(settings(TEACHER__PRICES="/nowhere.toml"))


def test_the_order_of_the_metrics_counts(old, tmp_path, settings):
    """The first one is the main one; predictions are kept."""
    text = (Path(__file__).parents[1] / "common/tasks/gec.toml").read_text("utf-8")
    first, second = '    "exact_match",\n', '    "exact_match_normalized",\n'
    assert first + second in text
    (tmp_path / "gec.toml").write_text(text.replace(first + second, second + first), "utf-8")
    evaluate.main(settings(TASK="./gec.toml"))
    metrics = json.loads((tmp_path / "runs/old/metrics.json").read_text())
    assert metrics["main_metric"] == "exact_match_normalized"


def test_manifests_of_later_versions_are_read_too(old):
    storage = RunStorage(old)
    content = storage.read_json("labels/manifest.json")
    storage.write_json("labels/manifest.json", content | {"more": [1], "counts": {"ok": 80}})
    assert read_manifest(storage, LABELS).counts == {"ok": 80}
    assert read_manifest(storage, ADAPTER).summary["updates"] == 5
    assert read_manifest(storage, PREDICTIONS).scored["systems"][0] == "copy"


def test_what_fingerprints_leave_out_are_the_defaults_of_version_0_1():
    """Otherwise older fingerprints would mean something else.

    Whoever changes a default puts the first one into `FIRST_DEFAULTS`.
    """
    pinned = {
        "teacher": {
            "endpoint": "chat",
            "max_tokens": 512,
            "temperature": 0.0,
            "logprobs": 0,
        },
        "label": {"samples": 1},
        "student": {
            "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            "quantization": "nf4",
            "max_tokens": 512,
        },
        "train": {
            "epochs": 3.0,
            "seed": 0,
            "batch_size": 8,
            "learning_rate": 2e-4,
            "warmup_steps": 20,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "lora_rank": 8,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "target_modules": ["all-linear"],
            "held_out": 200,
            "evaluations": 6,
            "patience": 3,
        },
        "evaluate": {"max_new_tokens": 256},
    }
    for section, values in pinned.items():
        assert {name: find_default(f"{section}.{name}") for name in values} == values
    fingerprinted = json.loads((MADE / "adapter/manifest.json").read_text())["fingerprint"]
    names = {name.removeprefix("train.") for name in fingerprinted if name.startswith("train.")}
    assert names == set(pinned["train"])
