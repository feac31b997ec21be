"""The predict job: every input once, in order, also after kills; the cascade; drift."""

import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import RaySystemError

from common.data.testset import load_test_rows
from common.errors import DistillError, InputError, SettingsError
from common.evaluation.confidence import Calibration
from common.outputs.actor import StudentActor
from common.outputs.answers import answer_block
from common.outputs.drift import describe_drift, measure_drift
from common.outputs.fill import fill, find_unsure
from common.outputs.inputs import OUTPUT_SCHEMA, find_folder, load_inputs, name_columns
from common.outputs.parts import OutputParts
from common.outputs.source import cut, pack, unpack
from common.outputs.students import _explain, share_cpus
from common.records import Response, hash_content, hash_text
from common.run.manifest import read_manifest, write_manifest
from common.run.steps import ADAPTER, PREDICTIONS
from common.run.storage import RunStorage
from common.student.student import open_student
from common.tasks.rules import LabelRules
from common.tasks.task import load_task
from common.teacher.requests import fingerprint_teacher
from jobs import evaluate, predict
from tests.support.commands import run_job, start_job
from tests.support.trained_run import make_trained_run


@pytest.fixture
def run(settings, tmp_path):
    """Settings and storage of a trained run, and a function that predicts."""
    common = {
        "DATA__SOURCE": tmp_path / "data",
        "STUDENT__MODEL": "builtin",
        "TEACHER__BASE_URL": "builtin",
        "TRAIN__EPOCHS": 1,
        "EVALUATE__MAX_NEW_TOKENS": 16,
        "PREDICT__SOURCE": tmp_path / "inputs.jsonl",
        "PREDICT__PART_ROWS": 50,
    }
    own, storage = make_trained_run(settings, tmp_path, 120, **common, TRAIN__MERGE="false")

    def do(code=0, **more):
        """Predicts as a command; its log."""
        done = run_job("predict", tmp_path, **common, **more)
        assert done.returncode == code, done.stderr
        return done.stderr

    do.start = lambda: start_job("predict", tmp_path, **common)
    return own, storage, do


def write_inputs(texts):
    lines = ({"id": i, "modified": text, "score": i / 4} for i, text in enumerate(texts))
    Path("inputs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_required_gpu_is_a_node_s(run):
    _, storage, do = run
    write_inputs(["the 1 cat sleep"])
    assert "DISTILL_STUDENT__REQUIRE_GPU=true, and no GPU can be used" in do(
        2, STUDENT__REQUIRE_GPU="true"
    )
    assert storage.list_files("outputs/inputs") == ["outputs/inputs/_made-from.json"]


def read_outputs(storage, name="inputs"):
    names = [n for n in storage.list_files(f"outputs/{name}") if n.endswith(".parquet")]
    return pa.concat_tables([pq.read_table(storage.path(name)) for name in names]), names


@pytest.mark.whole
def test_each_input_has_its_answer_in_its_order(run):
    own, storage, do = run
    evaluate.main(own)
    test = [row.text for row in load_test_rows(own, load_task("gec")).rows]
    long = "word " * 1200
    texts = [*test, "", *test[:30], long, *[f"a {i} cat sleep" for i in range(20)]]
    write_inputs(texts)
    kept = {"PREDICT__KEEP": "id:key, score"}
    log = do(**kept)
    assert f"{len(texts)} rows, {len(test) + 22} of them with a text of their own" in log
    table, names = read_outputs(storage)
    assert names == [f"outputs/inputs/part-00000-{i:06}.parquet" for i in range(4)]
    assert pq.read_table(storage.path("outputs/inputs")).equals(table)
    assert table["text"].to_pylist() == texts
    assert table["key"].to_pylist() == list(range(len(texts)))
    assert table["score"].to_pylist() == [i / 4 for i in range(len(texts))]
    answers = table["prediction"].to_pylist()
    known = pq.read_table(storage.path("predictions/distilled.parquet"))
    assert answers[: len(test)] == known["prediction"].to_pylist()
    first = len(test) + 1
    assert answers[first : first + 30] == answers[:30]  # in another part, and equal
    rows = table.to_pylist()
    assert (rows[len(test)]["error"], rows[len(test)]["answered_by"]) == ("empty", None)
    assert rows[first + 30]["error"] == "too_long"
    assert {row["answered_by"] for row in rows} == {"student", None}
    assert all(0 <= row["confidence"] <= 1 for row in rows if row["confidence"] is not None)
    summary = storage.read_json("outputs/inputs/_manifest.json")["summary"]
    assert (summary["rows"], summary["student"]) == (len(texts), len(texts) - 1)
    assert "already done" in do(**kept)

    # parts that a kill has left, and nothing else
    storage.remove("outputs/inputs/_manifest.json", names[1], names[3])
    before = Path(storage.path(names[0])).stat().st_mtime_ns
    assert "2 of 4 parts are there" in do(**kept)
    again, _ = read_outputs(storage)
    assert again.equals(table)
    assert Path(storage.path(names[0])).stat().st_mtime_ns == before
    write_inputs(texts[1:])
    log = do(3, **kept)
    assert "inputs was '" in log
    assert "choose another DISTILL_PREDICT__NAME" in log


@pytest.mark.whole
def test_the_teacher_answers_where_the_student_is_not_sure(run):
    own, storage, do = run
    texts = [f"the {i} cat sleep" for i in range(60)]
    write_inputs([*texts, *texts[:10]])
    assert "CASCADE='0.5' needs the confidence" in do(3, PREDICT__CASCADE="0.5")
    calibration = Calibration([0.0] * 5, [1.0] * 5, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    bounds = {"interval": [0.8, 1.0], "difference_interval": [-0.1, 0.1]}
    point = {"threshold": 0.4, "share": 0.5, "value": 0.9, "difference": 0.0, **bounds}
    cascade = {"margin": 0.02, "points": [], "rows": 20}
    confidence_facts = {"calibration": vars(calibration), "error": 0.0, "auroc": None}
    adapter = read_manifest(storage, ADAPTER)
    scored = {
        "adapter": adapter.identity,
        "evaluate.max_new_tokens": 16,
        **fingerprint_teacher(own, load_task("gec")),
    }
    write_manifest(storage, PREDICTIONS, scored)
    metrics = {
        "confidence": confidence_facts | {"bins": [(0.9, 0.9, 20)], "rows": 20},
        "cascade": cascade | {"chosen": None, "holds": None},
    }
    storage.write_json("metrics.json", metrics)
    assert "names no confidence" in do(3, PREDICT__CASCADE="auto")
    do()
    alone, _ = read_outputs(storage)
    confidence = np.array(alone["confidence"].to_pylist())
    point["threshold"] = threshold = float(np.median(confidence))
    chosen = cascade | {"chosen": point, "holds": False}
    storage.write_json("metrics.json", metrics | {"cascade": chosen})
    assert "cannot confirm the confidence" in do(3, PREDICT__CASCADE="auto")
    storage.write_json("metrics.json", metrics | {"cascade": chosen | {"holds": True}})
    assert "needs the confidence" in do(3, PREDICT__CASCADE="auto", EVALUATE__SAMPLES=2)
    assert "student at work" not in do(PREDICT__CASCADE="auto")  # its answers are there
    mixed, _ = read_outputs(storage)
    rows = mixed.to_pylist()
    for before, row in zip(alone.to_pylist(), rows, strict=True):
        is_sure = before["confidence"] >= threshold and before["error"] is None
        assert row["answered_by"] == ("student" if is_sure else "teacher")
        assert row["confidence"] == before["confidence"]
        if is_sure:
            assert row == before
        else:
            assert row["error"] is None
    assert [row["prediction"] for row in rows[60:]] == [row["prediction"] for row in rows[:10]]
    summary = storage.read_json("outputs/inputs/_manifest.json")["summary"]
    assert summary["teacher"] == sum(row["answered_by"] == "teacher" for row in rows) > 0
    assert "cascade was" in do(3)
    write_manifest(storage, PREDICTIONS, {"adapter": "of another training"})
    assert "needs the confidence of this adapter" in do(3, PREDICT__CASCADE="auto")
    assert "student.quantization was 'nf4'" in do(3, STUDENT__QUANTIZATION="none")


@pytest.mark.whole
def test_another_cascade_takes_nothing_from_one_that_was_killed(run):
    """As if a kill had left parts that a teacher has filled in, and no manifest."""
    _, storage, do = run
    write_inputs([f"the {i} cat sleep" for i in range(60)])
    do()
    alone, names = read_outputs(storage)
    storage.remove("outputs/inputs/_manifest.json")
    made_from = storage.read_json("outputs/inputs/_made-from.json")
    filled = OutputParts(storage, "outputs/inputs", hash_content(made_from), "of the other one")
    name = Path(names[0]).stem
    rows = alone.slice(0, 50)
    taught = rows.set_column(4, "answered_by", pa.array(["teacher"] * 50))
    filled.write(name, taught, "of the other one")
    assert filled.find_done([name]) == {name}
    do()
    assert read_outputs(storage)[0].equals(alone)


def test_unfinished_outputs_of_other_inputs_stay(run):
    _, storage, do = run
    write_inputs([f"the {i} cat sleep" for i in range(60)])
    do()
    storage.remove("outputs/inputs/_manifest.json")
    before, _ = read_outputs(storage)
    write_inputs([f"the {i} dog sleep" for i in range(60)])
    said = do(3)
    assert "inputs was" in said
    assert "DISTILL_PREDICT__NAME" in said
    assert read_outputs(storage)[0].equals(before)


@pytest.mark.whole
def test_kills_lose_and_change_nothing(run, tmp_path):
    own, storage, do = run
    write_inputs([f"the {i % 700} cat sleep" for i in range(1500)])
    folder = tmp_path / "runs" / own.run / "outputs" / "inputs"
    for least in (2, 8):
        with do.start() as job:
            while len(list(folder.glob("part-*"))) < least and job.poll() is None:
                time.sleep(0.05)
            job.kill_all()
    assert not (folder / "_manifest.json").exists()
    do()
    killed, names = read_outputs(storage)
    assert len(names) == 30
    shutil.rmtree(folder)
    do()
    undisturbed, _ = read_outputs(storage)
    assert killed.equals(undisturbed)


class FakeStudent:
    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return [
            Response(text.upper(), 3, 0.0, mean_logprob=-0.1, least_logprob=-0.2, margin=0.5)
            for text in texts
        ]


def make_rows(texts):
    return pa.table({"id": list(map(hash_text, texts)), "text": texts, "key": range(len(texts))})


def test_a_block_asks_for_its_new_texts_once():
    student, rules = FakeStudent(), LabelRules(allowed=["A", "B"])
    rows = make_rows(["a", "b", "a", "old", " ", "c"])
    part = answer_block(rows, [True, True, False, False, True, True], student, rules, None)
    assert student.asked == ["a", "b", "c"]
    assert part.schema.names == [*OUTPUT_SCHEMA.names, "key"]
    assert part["prediction"].to_pylist() == ["A", "B", "A", None, "", "C"]
    assert part["error"].to_pylist() == [None, None, None, "repeated", "empty", "not_allowed"]
    assert part["confidence"][0].as_py() == pytest.approx(np.exp(-0.4))
    assert part["key"].to_pylist() == list(range(6))


def test_parts_are_filled_in(settings):
    parts = OutputParts(RunStorage(settings()), "outputs/x", "f")
    student, rules = FakeStudent(), LabelRules()
    for name, texts, is_new in (
        ("part-0", ["a", "b"], [True, True]),
        ("part-1", ["a", "c", "b"], [False, True, False]),
    ):
        parts.write(name, answer_block(make_rows(texts), is_new, student, rules, None))
    names = ["part-0", "part-1"]
    assert parts.find_done([*names, "part-2"]) == set(names)
    assert replace(parts, fingerprint="other").find_done(names) == set()
    unsure = find_unsure(parts, names, 0.99)
    assert sorted(e.text for e in unsure.texts.values()) == ["a", "b", "c"]
    assert unsure.repeated == {hash_text("a"), hash_text("b")}
    assert find_unsure(parts, names, None).texts == {}
    for _ in range(2):  # again after a kill in the middle
        fill(parts, names, unsure, {hash_text("b"): "by teacher"}, lambda: None)
    rows = parts.read("part-1").to_pylist()
    assert [row["prediction"] for row in rows] == ["A", "C", "by teacher"]
    assert [row["answered_by"] for row in rows] == ["student", "student", "teacher"]
    assert {row["error"] for row in rows} == {None}
    assert parts.read("part-0")["answered_by"].to_pylist() == ["student", "teacher"]


def test_blocks_are_of_one_size_and_travel_whole():
    whole = pa.table({"id": ["x"] * 7, "v": list(range(7))})
    tables = (whole.slice(0, n) for n in (3, 0, 7, 1))
    found = list(cut(tables, 4))
    assert [table.num_rows for table in found] == [4, 4, 3]
    assert found[1]["v"].to_pylist() == [1, 2, 3, 4]
    marks = [True, False, True, True]
    block = pack(found[0], "part-0", np.packbits(marks).tobytes()).to_pylist()[0]
    rows, is_new = unpack(block["rows"], block["is_new"])
    assert rows.equals(found[0])
    assert is_new == marks


def test_inputs_are_all_rows_of_all_files(settings, tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "b_test.txt").write_text("two\none\n")
    (folder / "a_train.txt").write_text("one\n\nthree\nthree\n")
    own = settings(PREDICT__SOURCE=folder, PREDICT__PART_ROWS=2, DATA__TEXT_COLUMN="text")
    inputs = load_inputs(own, load_task("gec"))
    assert inputs.counts == [3, 2]  # a blank line is no row of a file of lines
    assert inputs.distinct == 3
    assert inputs.firsts.tolist() == [0, 1, 1, 3, 0]
    blocks = inputs.list_blocks(2)
    assert [(b.name, b.start, b.rows) for b in blocks] == [
        ("part-00000-000000", 0, 2),
        ("part-00000-000001", 2, 1),
        ("part-00001-000000", 3, 2),
    ]


@pytest.mark.parametrize(
    ("source", "name", "folder"),
    [
        ("s3://bucket/in/reviews.jsonl.gz", "", "reviews"),
        ("data/in/", "", "in"),
        ("org/some-set", "", "some-set"),
        ("x.csv", "march", "march"),
        ("/.hidden", "", "inputs"),
    ],
)
def test_outputs_are_named_by_the_source(settings, source, name, folder):
    own = settings(PREDICT__SOURCE=source, PREDICT__NAME=name)
    assert find_folder(own) == f"outputs/{folder}"


def test_settings_that_cannot_be(settings, tmp_path):
    with pytest.raises(SettingsError, match="PREDICT__SOURCE is not set"):
        load_inputs(settings(), load_task("gec"))
    for keep in ("text", "a:id", "a,b:a"):
        with pytest.raises(SettingsError, match="rename yours"):
            name_columns(settings(PREDICT__KEEP=keep))
    with pytest.raises(SettingsError, match="'a' twice"):
        name_columns(settings(PREDICT__KEEP="a:b,a:c"))
    for name in ("..", ".", "a/b"):
        with pytest.raises(SettingsError, match="PREDICT__NAME"):
            settings(PREDICT__NAME=name)
    settings(PREDICT__NAME="")
    assert name_columns(settings(PREDICT__KEEP="id:key, b")) == {"id": "key", "b": "b"}
    (tmp_path / "x.csv").write_text("modified,b\nhello,1\n")
    own = settings(PREDICT__SOURCE="x.csv", PREDICT__KEEP="nothing")
    with pytest.raises(InputError, match=r"x.csv has no column 'nothing'; it has modified, b"):
        load_inputs(own, load_task("gec"))
    with pytest.raises(InputError, match=r"PREDICT__SOURCE: 'missing.csv' does not exist"):
        load_inputs(settings(PREDICT__SOURCE="missing.csv", PREDICT__KEEP=""), load_task("gec"))
    with pytest.raises(SettingsError, match="no user or password"):
        settings(PREDICT__SOURCE="https://user:word@host/x.jsonl")
    settings(PREDICT__SOURCE="x.csv")
    for cascade in ("2", "always"):
        with pytest.raises(SettingsError, match="off, auto, or a number from 0 to 1"):
            settings(PREDICT__CASCADE=cascade)


def test_a_missing_source_is_told_before_the_adapter_is_waited_for(settings):
    with pytest.raises(SettingsError, match="PREDICT__SOURCE is not set"):
        predict.main(settings(STORAGE__WAIT_SECONDS=3600))


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_kept_columns_are_of_one_type(settings, tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [{"modified": "one", "v": 1}])
    write_lines(folder / "b.jsonl", [{"modified": "two", "v": 1.5}])
    write_lines(folder / "c.jsonl", [{"modified": "two", "v": None}])
    own = settings(PREDICT__SOURCE=folder, PREDICT__KEEP="v:value")
    inputs = load_inputs(own, load_task("gec"))
    assert inputs.schema.field("value").type == pa.float64()
    write_lines(folder / "b.jsonl", [{"modified": "two", "v": 2.5}])
    other = load_inputs(own, load_task("gec"))
    assert other.digest != inputs.digest  # what is kept counts
    write_lines(folder / "c.jsonl", [{"modified": "two", "v": "text"}])
    with pytest.raises(InputError, match=r"a column to keep of several types .*c\.jsonl"):
        load_inputs(own, load_task("gec"))


def test_rows_that_move_between_files_are_other_inputs(settings, tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    digests = set()
    for cut_at in (1, 2):
        (folder / "a.txt").write_text("\n".join(["one", "two", "three"][:cut_at]))
        (folder / "b.txt").write_text("\n".join(["one", "two", "three"][cut_at:]))
        own = settings(PREDICT__SOURCE=folder, DATA__TEXT_COLUMN="text")
        digests.add(load_inputs(own, load_task("gec")).digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("nodes", "students", "cpus"),
    [([2, 2], 1, 2), ([2, 2], 2, 2), ([4, 4, 4], 2, 4), ([8], 3, 2), ([2], 5, 1), ([1, 8], 2, 4)],
)
def test_each_student_fits_on_a_node(nodes, students, cpus):
    assert share_cpus(nodes, students) == cpus


def test_a_cut_off_answer_is_marked(settings):
    student = open_student(settings(STUDENT__MODEL="builtin"), load_task("gec"))
    rows = make_rows(["the dog sleep in the house"])
    cut_off = answer_block(
        rows, [True], partial(student.answer, max_new_tokens=2), LabelRules(), None
    )
    assert cut_off["error"].to_pylist() == ["length"]


def test_drift_is_said_where_it_is():
    words = ["The", "dog", "sleeps", "in", "the", "old", "house", "and", "sees", "a", "cat"]
    random = np.random.default_rng(0)
    trained = [" ".join(random.choice(words, 12)) for _ in range(400)]
    alike = [" ".join(random.choice(words, 12)) for _ in range(300)]
    assert describe_drift(measure_drift(alike, trained, [], 0.8, 0.8)) == []
    other = ["Der Hund schläft heute wieder in dem alten Haus am Rande der Stadt und träumt."] * 300
    found = "; ".join(describe_drift(measure_drift(other, trained, [], 0.6, 0.8)))
    assert "lengths differ" in found
    assert "another language" in found
    assert "words are new, where 0% are usual" in found
    assert "mean confidence is 0.60, where 0.80 is usual" in found


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (
            RaySystemError("Unable to allocate internal buffer.", "Traceback (most recent call)"),
            SettingsError,
            "the memory does not suffice (System error: Unable to allocate internal buffer); give",
        ),
        (
            RaySystemError("It is gone.", "Traceback (most recent call)"),
            DistillError,
            "Ray: RaySystemError: System error: It is gone.; run again",
        ),
    ],
)
def test_an_error_of_ray_is_one_line_without_a_traceback(error, kind, told):
    found = _explain(error)
    assert type(found) is kind
    assert str(found).startswith(told)
    assert "Traceback" not in str(found)


@pytest.mark.parametrize(
    ("error", "failure", "told"),
    [
        (MemoryError(), "SettingsError", "the memory does not suffice (MemoryError); give the"),
        (ValueError("no such\nlayer"), "DistillError", "a student failed (ValueError: no such); "),
        (InputError("it is gone"), "InputError", "it is gone (on "),
    ],
)
def test_what_a_student_fails_with_reaches_the_driver(monkeypatch, error, failure, told):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(StudentActor, "_answer", fail)
    block = pack(make_rows(["a"]), "part-0", b"")
    (result,) = StudentActor(None, "outputs/x", "f", None)(block).to_pylist()
    assert result["failure"] == failure
    assert result["message"].startswith(told)
