"""Whole runs, from examples to report."""

import json
import random
import re
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import InputError, SettingsError
from common.student.source import find_student
from jobs import evaluate, pipeline
from support.commands import run_job
from support.fake_teacher import running_teacher

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "multilingual_gec"


def test_the_built_in_parts_distil(tmp_path, settings):
    variables = {
        "DATA__SOURCE": "builtin",
        "TEACHER__BASE_URL": "builtin",
        "STUDENT__MODEL": "builtin",
        "DATA__TRAIN_LIMIT": 600,
        "DATA__TEST_LIMIT": 120,
        "TRAIN__EPOCHS": 3,
        "EVALUATE__MAX_NEW_TOKENS": 64,
    }
    done = run_job("pipeline", tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    run = tmp_path / "runs/default"
    metrics = json.loads((run / "metrics.json").read_text())
    scores = {name: system["exact_match"] for name, system in metrics["systems"].items()}
    assert {score["n"] for score in scores.values()} == {120}
    assert scores["distilled"]["value"] > scores["base"]["value"] + 0.1
    assert scores["teacher"]["value"] > scores["distilled"]["value"]
    assert set(metrics["systems"]["base"]["groups"]["lang"]) == {"de", "en", "es", "fr"}
    assert "distilled" in done.stdout
    assert f"report: {run}/report.html" in done.stdout
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    for system in ("copy", "teacher", "base", "base_few_shot", "distilled"):
        table = pq.read_table(run / f"predictions/{system}.parquet")
        assert table.num_rows == 120
        assert {"text", "references", "prediction", "lang"} <= set(table.column_names)
    labels = pq.ParquetDataset(sorted((run / "labels").glob("*.parquet"))).read()
    assert labels.num_rows == 600
    assert not {"sentence", "reference", "references"} & set(labels.column_names)

    again = run_job("pipeline", tmp_path, **variables)
    assert again.returncode == 0
    assert again.stderr.count("already done") == 3

    (run / "predictions/_manifest.json").unlink()
    unchanged = {"STUDENT__QUANTIZATION": "nf4", "TEACHER__TEMPERATURE": 0}
    for name, value, told in (
        ("STUDENT__QUANTIZATION", "none", "student.quantization was 'nf4' and is 'none'"),
        ("TEACHER__TEMPERATURE", 1, "teacher.temperature was 0.0 and is 1.0"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            evaluate.main(settings(**(variables | unchanged | {name: value})))


@pytest.mark.whole
def test_a_sweep_trains_several_students_on_labels_that_are_paid_for_once(tmp_path, settings):
    other = tmp_path / "students/other"
    shutil.copytree(find_student(settings(STUDENT__MODEL="builtin")), other)
    variables = {
        "DATA__SOURCE": "builtin",
        "DATA__TRAIN_LIMIT": 40,
        "DATA__TEST_LIMIT": 15,
        "STUDENT__MODELS": f"builtin, {other}",
        "TRAIN__EPOCHS": 1,
        "TRAIN__EVALUATIONS": 1,
        "EVALUATE__MAX_NEW_TOKENS": 40,
        "TEACHER__MODEL": "big",
        "RUN": "both",
    }
    with running_teacher(lambda text, call: text.capitalize()) as teacher:
        hosted = {"hosted": {"base_url": teacher.url, "prompt": "teacher", "max_tokens": 99}}
        variables["TEACHER__BASE_URL"] = teacher.url
        variables["EVALUATE__ENDPOINTS"] = json.dumps(hosted)
        done = run_job("pipeline", tmp_path, **variables)
        assert done.returncode == 0, done.stderr
        assert len(teacher.bodies) == 40 + 2 * 15
        again = run_job("pipeline", tmp_path, **variables)
        assert again.returncode == 0, again.stderr
        assert again.stderr.count("already done") == 3 + 2
        reports = [tmp_path / f"runs/{name}/report.html" for name in ("both", "both.other")]
        for path in (*reports, tmp_path / "runs/both/sweep.md"):
            path.unlink()
        refused = run_job("pipeline", tmp_path, **variables, EVALUATE__MIN_RETENTION=2)
        assert refused.returncode == 6
        assert "/both/metrics.json: " in refused.stderr.splitlines()[-1]  # the first student's
        assert all(path.exists() for path in reports)
        assert len(teacher.bodies) == 40 + 2 * 15
    table = (tmp_path / "runs/both/sweep.md").read_text()
    assert table in done.stdout
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "builtin",
        str(other),
        "the teacher itself",
    ]
    assert json.loads((tmp_path / "runs/both.other/metrics.json").read_text())["systems"]


def test_students_of_a_sweep_have_names_of_their_own(settings):
    own = settings(STUDENT__MODELS="a/small, b/small, c/small", DATA__SOURCE="builtin")
    with pytest.raises(SettingsError, match=r"'b/small' and 'c/small' would share the run"):
        pipeline.main(own)


TASK = """
name = "sentiment"
metrics = ["exact_match"]
[columns]
text = "review"
reference = "mood"
[teacher]
system = "Is the review positive or negative? Answer with one word."
[student]
prompt = "Mood:\\n{text}"
[label_rules]
lower_case = true
allowed = ["positive", "negative"]
"""


def test_another_task_runs_from_its_file_alone(tmp_path):
    rng = random.Random(0)
    words = {"positive": ["good", "lovely", "fine"], "negative": ["bad", "awful", "sad"]}

    def make_rows(count):
        for i in range(count):
            mood = rng.choice(sorted(words))
            yield {"review": f"The film {i} was {rng.choice(words[mood])}.", "mood": mood}

    (tmp_path / "sentiment.toml").write_text(TASK)
    (tmp_path / "reviews").mkdir()
    for split, count in (("train", 300), ("test", 60)):
        lines = [json.dumps(row) for row in make_rows(count)]
        (tmp_path / f"reviews/{split}.jsonl").write_text("\n".join(lines))

    def answer(text, call):
        return "Negative." if any(word in text for word in words["negative"]) else "positive"

    with running_teacher(answer) as teacher:
        done = run_job(
            "pipeline",
            tmp_path,
            RUN="moods",
            TASK="./sentiment.toml",
            DATA__SOURCE="reviews",
            TEACHER__BASE_URL=teacher.url,
            TEACHER__MODEL="big",
            STUDENT__MODEL="builtin",
            TRAIN__EPOCHS=3,
        )
        assert done.returncode == 0, done.stderr
        assert len(teacher.bodies) == len({json.dumps(body) for body in teacher.bodies}) <= 360
    metrics = json.loads((tmp_path / "runs/moods/metrics.json").read_text())
    values = {name: s["exact_match"]["value"] for name, s in metrics["systems"].items()}
    assert values["teacher"] == 1
    assert values["base"] < 0.1
    assert values["distilled"] > 0.8


def test_what_evaluation_would_miss_is_found_before_the_teacher_is_asked(tmp_path, settings):
    rows = pa.table({"modified": ["a text", "another"]})
    (tmp_path / "data").mkdir()
    pq.write_table(rows, tmp_path / "data/train.parquet")

    def refused(**variables):
        with running_teacher(lambda text, call: text) as teacher:
            own = settings(
                DATA__SOURCE=tmp_path / "data",
                TEACHER__BASE_URL=teacher.url,
                TEACHER__MODEL="big",
                **variables,
            )
            with pytest.raises((InputError, SettingsError)) as caught:
                pipeline.main(own)
            assert teacher.bodies == []
            assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
        return str(caught.value)

    assert "no file whose name says that it is of the test split" in refused(
        STUDENT__MODEL="builtin"
    )
    pq.write_table(rows, tmp_path / "data/test.parquet")
    assert "no column 'sentence'" in refused(STUDENT__MODEL="builtin")
    full = rows.append_column("sentence", pa.array(["A text.", "Another."]))
    pq.write_table(full.slice(1), tmp_path / "data/test.parquet")
    pq.write_table(full.slice(0, 1), tmp_path / "data/train.parquet")
    assert "DISTILL_STUDENT__MODEL='./nowhere'" in refused(STUDENT__MODEL="./nowhere")
    assert "DISTILL_TRAIN__REPORT_TO='nosuch'" in refused(
        STUDENT__MODEL="builtin", TRAIN__REPORT_TO="nosuch"
    )


@pytest.mark.whole
def test_a_run_lives_on_an_object_store(tmp_path, bucket):
    """Of real sentences, where they are at hand: by settings alone."""
    done = run_job(
        "pipeline",
        tmp_path,
        STORAGE__ROOT=f"{bucket}/some/prefix",
        DATA__SOURCE=SHARED if SHARED.is_dir() else "builtin",
        DATA__TRAIN_LIMIT=60,
        DATA__TEST_LIMIT=30,
        TEACHER__BASE_URL="builtin",
        STUDENT__MODEL="builtin",
        TRAIN__EPOCHS=1,
        EVALUATE__MAX_NEW_TOKENS=64,
    )
    assert done.returncode == 0, done.stderr
    assert f"report: {bucket}/some/prefix/default/report.html" in done.stdout
    store, folder = fsspec.filesystem("s3"), f"{bucket}/some/prefix/default"
    metrics = json.loads(store.cat(f"{folder}/metrics.json"))
    assert metrics["systems"]["teacher"]["exact_match"]["n"] == 30
    assert store.exists(f"{folder}/report.html")
    assert not (tmp_path / "runs").exists()
