"""What the label job makes of good and of bad input. For what it survives, see test_durability."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp import web

from support.commands import run_job
from support.fake_teacher import make_body, refuse, running_teacher


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "examples.jsonl"
    lines = [json.dumps({"text": f"Text number {i}."}) for i in range(600)]
    path.write_text("\n".join([*lines, lines[0], json.dumps({"text": " "})]), "utf-8")
    return path


def describe(source: Path, url: str) -> dict[str, object]:
    return {
        "DATA__SOURCE": source,
        "DATA__TEXT_COLUMN": "text",
        "TEACHER__BASE_URL": url,
        "TEACHER__MODEL": "big",
        "LABEL__ACTORS": 1,
    }


def label(folder: Path, source: Path, url: str, **more):
    return run_job("label", folder, **describe(source, url), **more)


def read_labels(folder: Path) -> list[dict]:
    """All rows; as readers of Parquet folders do, it passes over the manifest."""
    return pq.read_table(folder / "runs/default/labels").to_pylist()


def test_every_example_ends_as_one_row(tmp_path, texts):
    def answer(text, call):
        number = int(text.split()[-1].rstrip("."))
        if number % 100 == 1:
            return refuse(400, "blocked by policy", "content_policy_violation")
        if number % 100 == 2:
            return "Sure, here is the sentence: " + text
        if number % 100 == 3 and call % 2:
            return refuse(500, "try again")
        if number % 100 == 4:
            return web.json_response(make_body("HALF A SEN", finish_reason="length"))
        return text.upper()

    with running_teacher(answer) as teacher:
        done = label(tmp_path, texts, teacher.url)
        assert done.returncode == 0, done.stderr
        rows = read_labels(tmp_path)
        assert Counter(row["status"] for row in rows) == {"ok": 582, "failed": 13, "filtered": 6}
        assert len({row["id"] for row in rows}) == len(rows) == 601
        assert all(row["label"] == row["text"].upper() for row in rows if row["status"] == "ok")
        assert all(row["label"] is None for row in rows if row["status"] != "ok")
        errors = Counter(row["error"] for row in rows if row["error"])
        assert errors == {"content_policy": 6, "pattern": 6, "length": 6, "empty_text": 1}
        assert "inputs 601, ok 582, failed 13, filtered 6, duplicates 1" in done.stderr

        calls = len(teacher.bodies)
        again = label(tmp_path, texts, teacher.url)
        assert again.returncode == 0
        assert "already done" in again.stderr
        assert len(teacher.bodies) == calls

        other = label(tmp_path, texts, teacher.url, TEACHER__TEMPERATURE=0.5)
        assert other.returncode == 3
        assert "teacher.temperature was 0.0 and is 0.5" in other.stderr


def test_a_teacher_that_refuses_is_asked_once_and_leaves_nothing(tmp_path, texts):
    with running_teacher(lambda text, call: refuse(401, "wrong key")) as teacher:
        done = label(tmp_path, texts, teacher.url, TEACHER__API_KEY="very-secret")
        assert len(teacher.bodies) == 1
    assert done.returncode == 4
    assert "401 wrong key" in done.stderr
    assert "very-secret" not in done.stderr + done.stdout
    assert not (tmp_path / "runs").exists()


def test_too_many_failures_fail_the_job_and_only_they_are_asked_for_again(tmp_path, texts):
    broken = True

    def answer(text, call):
        if broken and "5" in text:
            return refuse(500, "broken") if "50" in text else web.json_response({"choices": []})
        return text

    with running_teacher(answer) as teacher:
        done = label(tmp_path, texts, teacher.url, TEACHER__MAX_ATTEMPTS=1)
        assert done.returncode == 1
        assert "DISTILL_LABEL__MAX_FAILURE_RATE=0.1" in done.stderr
        assert "bad_response" in done.stderr
        calls, broken = len(teacher.bodies), False
        again = label(tmp_path, texts, teacher.url)
        assert again.returncode == 0, again.stderr
        assert len(teacher.bodies) - calls == sum("5" in f"{i}" for i in range(600))
        assert Counter(row["status"] for row in read_labels(tmp_path)) == {"ok": 600, "failed": 1}


def test_labels_that_are_mostly_filtered_are_told_of(tmp_path, texts):
    (tmp_path / "mood.toml").write_text('name = "m"\n[label_rules]\nallowed = ["good", "bad"]\n')
    with running_teacher(lambda text, call: "It is GOOD") as teacher:
        done = label(tmp_path, texts, teacher.url, TASK="./mood.toml")
        assert done.returncode == 0, done.stderr
        assert "600 of 601 rows filtered, mostly by 'not_allowed', such as the response 'It is" in (
            done.stderr
        )
        assert "the evaluation will be missing its test rows: " in done.stderr


BAD_INPUT = [
    ({"DATA__SUORCE": "x"}, 2, "the nearest known one is DISTILL_DATA__SOURCE"),
    ({"TEACHER__BASE_URL": "localhost:8000"}, 2, "DISTILL_TEACHER__BASE_URL='localhost:8000'"),
    ({"TEACHER__TIMEOUT_SECONDS": "soon"}, 2, "DISTILL_TEACHER__TIMEOUT_SECONDS='soon'"),
    ({"TEACHER__MODEL": "", "TEACHER__BASE_URL": "http://a/v1"}, 2, "DISTILL_TEACHER__MODEL"),
    ({"TASK": "gce"}, 2, "nearest is 'gec'"),
    ({"TASK": "./no-such-task.toml"}, 3, "no-such-task.toml"),
    ({"TEACHER__BASE_URL": "http://nosuch.invalid/v1"}, 3, "nothing answers there"),
    ({"DATA__TEXT_COLUMN": "body"}, 3, "no column 'body'; it has text"),
    ({"DATA__SOURCE": "empty.jsonl"}, 3, "empty.jsonl"),
    ({"DATA__SOURCE": "broken.parquet"}, 3, "broken.parquet cannot be read as parquet"),
    ({"DATA__SOURCE": "missing.csv"}, 3, "'missing.csv' does not exist"),
    ({"STORAGE__ROOT": "nosuch://bucket"}, 3, "DISTILL_STORAGE__ROOT='nosuch://bucket'"),
]


@pytest.mark.parametrize(("settings", "code", "message"), BAD_INPUT)
def test_bad_input_is_one_clear_line_and_nothing_is_written(
    tmp_path, texts, settings, code, message
):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is no parquet PAR1")
    before = sorted(tmp_path.iterdir())
    done = run_job("label", tmp_path, **(describe(texts, "builtin") | settings))
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert len(lines) == 1 or "calls   600" in lines[0]  # the forecast, before the teacher is met
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_help_lists_the_settings_of_the_job(tmp_path):
    done = run_job("label", tmp_path, "--help")
    assert done.returncode == 0
    assert "DISTILL_TEACHER__MODEL" in done.stdout
    assert "DISTILL_TRAIN__EPOCHS" not in done.stdout
    assert run_job("label", tmp_path, "--nonsense").returncode == 2


@pytest.mark.whole
def test_more_rows_than_fit_into_memory_are_read_by_ray(tmp_path):
    """And are resumed without a second look at the replies: parts hold them."""
    texts = [f"number {n}" for n in range(11_000)]
    lines = [json.dumps({"text": text}) + "\n" for text in [*texts, *texts[:50], "  "]]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-0.jsonl").write_text("".join(lines[:6000]), "utf-8")
    (tmp_path / "data/train-1.jsonl.gz").write_bytes(gzip.compress("".join(lines[6000:]).encode()))
    settings = {
        "DATA__SOURCE": tmp_path / "data",
        "DATA__TEXT_COLUMN": "text",
        "DATA__TRAIN_LIMIT": 0,
        "TEACHER__MODEL": "big",
        "TEACHER__MAX_CONCURRENCY": 128,
    }
    with running_teacher(lambda text, call: text.upper()) as teacher:
        done = run_job("label", tmp_path, TEACHER__BASE_URL=teacher.url, **settings)
        assert done.returncode == 0, done.stderr
        assert "inputs 11001, ok 11000, failed 1, filtered 0, duplicates 50" in done.stderr
        assert len(teacher.bodies) == 11_000
        rows = read_labels(tmp_path)
        assert {row["text"]: row["label"] for row in rows} == {
            text: text.upper() if text.strip() else None for text in [*texts, "  "]
        }
        shutil.rmtree(tmp_path / "runs/default/labels")
        again = run_job("label", tmp_path, TEACHER__BASE_URL=teacher.url, **settings)
        assert again.returncode == 0, again.stderr
        assert len(teacher.bodies) == 11_000
        assert sorted(map(str, read_labels(tmp_path))) == sorted(map(str, rows))
    assert not list((tmp_path / "runs/default/journal").glob("*.jsonl"))
