import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.data.testset import TestRow, TestRows
from common.errors import InputError
from common.evaluation.runner import SystemRunner
from common.evaluation.scores import score_systems
from common.metrics.metrics import METRICS
from common.run.lock import RunLock
from common.tasks.task import Task
from jobs import evaluate
from support.trained_run import make_trained_run

ROWS = TestRows(
    [
        TestRow(str(i), f"text {i}", [f"right {i}"], {"lang": "de" if i % 4 else "en"})
        for i in range(80)
    ],
    duplicates=3,
    leaked=2,
)


def predict(*right):
    """Right answers for some rows."""
    return [f"right {i}" if i in right else "wrong" for i in range(80)]


PREDICTIONS = {
    "teacher": predict(*range(60)),
    "copy": predict(),
    "base": predict(*range(5)),
    "distilled": predict(*range(10, 50)),
}


@pytest.fixture(scope="module")
def metrics():
    task = Task(name="tiny", metrics=list(METRICS))
    return json.loads(json.dumps(score_systems(task, ROWS, PREDICTIONS)))


def test_each_system_has_each_metric_with_n_and_interval(metrics):
    assert list(metrics["systems"]) == ["copy", "base", "distilled", "teacher"]
    for system in metrics["systems"].values():
        for name in METRICS:
            low, high = system[name]["interval"]
            assert low <= system[name]["value"] <= high, name
            assert system[name]["n"] == 80
    assert metrics["systems"]["teacher"]["exact_match"]["value"] == 0.75
    assert metrics["gain"] == pytest.approx(35 / 80)
    assert metrics["retention"] == pytest.approx(40 / 60)
    low, high = metrics["retention_interval"]
    assert low < 40 / 60 < high


def test_groups_of_few_rows_are_marked(metrics):
    groups = metrics["systems"]["distilled"]["groups"]["lang"]
    assert {name: g["exact_match"]["n"] for name, g in groups.items()} == {"de": 60, "en": 20}
    assert groups["en"]["exact_match"]["is_small"]
    assert not groups["de"]["gleu"]["is_small"]


def test_systems_are_compared_on_the_same_rows(metrics):
    found = {
        (c["system"], c["than"]): c for c in metrics["comparisons"] if c["metric"] == "exact_match"
    }
    assert found.keys() == {("distilled", n) for n in ("base", "copy", "teacher")}
    gain = found["distilled", "base"]
    assert gain["difference"] == pytest.approx(35 / 80)
    assert gain["p_value"] < 1e-4
    assert gain["interval"][0] > 0.3
    # 45 rows differ: 30 against 15 is significant (p 0.036), 29 against 16 is not (0.072)
    assert gain["smallest"] == pytest.approx(15 / 80)
    assert found["distilled", "teacher"]["difference"] == pytest.approx(-20 / 80)


def test_agreement_is_with_what_the_teacher_says(metrics):
    agreement = metrics["agreement"]
    assert agreement["distilled"]["value"] == pytest.approx((40 + 20) / 80)  # 20 are alike wrong
    assert agreement.keys() == {"copy", "base", "distilled"}


@pytest.mark.parametrize(("main", "agreement"), [("accuracy", 0.75), ("chrf", 0.0)])
def test_agreement_is_by_the_main_metric_if_that_judges_rows(main, agreement):
    task = Task(name="tiny", metrics=[main])
    shouted = PREDICTIONS | {"distilled": [text.upper() for text in PREDICTIONS["distilled"]]}
    found = score_systems(task, ROWS, shouted)["agreement"]["distilled"]
    assert found["value"] == agreement


def test_a_column_of_many_values_is_no_group(caplog):
    rows = [replace(row, groups={"id": str(i), "lang": "de"}) for i, row in enumerate(ROWS.rows)]
    many = TestRows(rows * 3, 0, 0)
    for i, row in enumerate(many.rows):
        many.rows[i] = replace(row, groups=row.groups | {"id": str(i)})
    scores = score_systems(
        Task(name="tiny", metrics=["exact_match"]), many, {n: p * 3 for n, p in PREDICTIONS.items()}
    )
    assert scores["systems"]["base"]["groups"].keys() == {"lang"}
    assert "'id' has 240 values" in caplog.text


@pytest.fixture
def run(settings, tmp_path):
    """Settings and storage of a trained run; its examples are in files."""
    return make_trained_run(settings, tmp_path)


def note_calls(monkeypatch):
    """The names of the systems that are asked from now on."""
    asked, ask = [], SystemRunner.ask

    def note(self, system, rows):
        responses = ask(self, system, rows)
        asked.append(system.key)
        return responses

    monkeypatch.setattr(SystemRunner, "ask", note)
    return asked


def test_predictions_that_are_there_are_not_made_again(run, settings, monkeypatch, caplog):
    own, storage = run
    asked = note_calls(monkeypatch)
    evaluate.main(own)
    systems = ["copy", "teacher", "base", "base_few_shot", "distilled", "merged"]
    assert asked == systems
    first = storage.read_json("metrics.json")
    assert first["systems"]["distilled"]["tokens_per_second"] > 0
    assert first["systems"]["distilled"]["precision"].startswith("nf4, ")
    precision = first["systems"]["merged"]["precision"]
    assert precision.split(",")[0] in ("float32", "bfloat16")
    (results,) = [n for n in storage.list_files("") if n.startswith("results_")]
    shots = storage.read_json(results)["n-shot"]
    assert shots["gec_distilled"] == 0 < shots["gec_base_few_shot"]
    figures = storage.read_json(results)["results"]["gec_distilled"]
    assert figures["exact_match,none"] == first["systems"]["distilled"]["exact_match"]["value"]
    name = f"samples_gec_teacher_{results.removeprefix('results_').removesuffix('.json')}.jsonl"
    samples = [json.loads(line) for line in storage.read_bytes(name).splitlines()]
    assert len(samples) == 20
    assert {"doc_id", "doc", "target", "filtered_resps", "exact_match"} <= samples[0].keys()
    assert sorted(first["systems"]) == sorted(systems)
    same = first["systems"]["merged"]["exact_match"]
    assert same == first["systems"]["distilled"]["exact_match"]
    table = pq.read_table(storage.path("predictions/distilled.parquet"))
    assert {"text", "references", "prediction", "edits", "tokens", "seconds"} <= set(
        table.column_names
    )
    caplog.set_level("INFO")
    evaluate.main(own)
    assert "already done" in caplog.text

    storage.remove("predictions/_manifest.json", "predictions/distilled.parquet")
    asked.clear()

    def die(*arguments):
        assert not storage.exists("metrics.json")  # figures of predictions that are gone
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SystemRunner, "ask_student", die)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(own)
    evaluate.main(own)  # as after a kill in the middle
    assert asked == ["distilled"]
    again = storage.read_json("metrics.json")
    assert again["comparisons"] == first["comparisons"]

    asked.clear()
    task_file = (Path(__file__).parents[1] / "common/tasks/gec.toml").read_text()
    Path("gec.toml").write_text(task_file.replace('"gleu",', ""))
    evaluate.main(settings(TASK="./gec.toml"))  # the metrics alone have changed
    assert asked == []
    assert "gleu" not in storage.read_json("metrics.json")["metrics"]


def test_it_waits_until_the_train_job_has_merged(run, settings, monkeypatch):
    _, storage = run
    asked = note_calls(monkeypatch)
    merged = storage.read_json("merged/_manifest.json")
    storage.remove("merged/_manifest.json")
    lock = RunLock(storage, "train")
    lock.acquire()
    lock.start()

    def merge():
        time.sleep(3)  # longer than an owner that is at work is silent
        storage.write_json("merged/_manifest.json", merged)
        lock.release()

    with ThreadPoolExecutor() as pool:
        ended = pool.submit(merge)
        evaluate.main(settings(STORAGE__WAIT_SECONDS=60))
        ended.result()
    assert "merged" in asked


def test_what_does_not_belong_together_is_not_compared(run):
    own, storage = run
    adapter, labels, merged = (
        storage.read_json(f"{step}/_manifest.json") for step in ("adapter", "labels", "merged")
    )
    other = merged | {"fingerprint": merged["fingerprint"] | {"train.epochs": 9}}
    storage.write_json("merged/_manifest.json", other)
    with pytest.raises(InputError, match=r"merged was made from something else: train\.epochs"):
        evaluate.main(own)
    storage.write_json("merged/_manifest.json", merged)
    storage.write_json("labels/_manifest.json", labels | {"counts": {"ok": 7}})
    with pytest.raises(InputError, match="adapter was made from something else: labels"):
        evaluate.main(own)
    storage.write_json("labels/_manifest.json", labels)
    evaluate.main(own)
    storage.write_json("adapter/_manifest.json", adapter | {"finished_at": "later"})
    with pytest.raises(InputError, match="predictions was made from something else: adapter"):
        evaluate.main(own)
