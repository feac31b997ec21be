"""Rounds of labelling, and the learning curve that says when to stop."""

import json

import numpy as np
import pytest

from common.errors import InputError, StoppedError
from common.labels.lanes.local import LocalLane
from common.labels.rounds import load_round, size_round
from common.records import Example
from common.run.manifest import read_manifest
from common.run.rounds import read_rounds
from common.run.run import open_run
from common.run.steps import ADAPTER, CURVE, LABELS
from common.training.choice import pick_unsure
from common.training.curve import predict_gain
from jobs import label, pipeline, report, train
from support.commands import run_job

ROUNDS = {
    "DATA__SOURCE": "builtin",
    "TEACHER__BASE_URL": "builtin",
    "STUDENT__MODEL": "builtin",
    "DATA__TRAIN_LIMIT": 90,
    "DATA__TEST_LIMIT": 20,
    "LABEL__ROUNDS": 3,
    "TRAIN__EPOCHS": 1,
    "TRAIN__EVALUATIONS": 1,
    "EVALUATE__MAX_NEW_TOKENS": 48,
}


@pytest.fixture
def local(monkeypatch):
    """Labels in this process."""
    monkeypatch.setattr("jobs.label.make_lane", lambda run: LocalLane())


def read_ids(run):
    tables = [run.storage.read_table(n) for n in read_manifest(run.storage, LABELS).files]
    return {id for table in tables for id in table["id"].to_pylist()}


@pytest.mark.whole
def test_each_round_labels_what_the_student_before_chose(tmp_path, settings):
    own = settings(STORAGE__ROOT=tmp_path / "runs", **ROUNDS)
    done = run_job("pipeline", tmp_path, **ROUNDS)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert [f"== round {n} of 3" in done.stderr for n in (1, 2, 3)] == [True, True, False]
    run = open_run(own)
    first, second = read_rounds(run.storage)
    ids = read_ids(run)
    assert len(ids) == 90
    assert len(set(first.chosen)) == len(set(second.chosen)) == 30
    assert set(first.chosen) | set(second.chosen) < ids
    lowest = sorted(ids - set(first.chosen) - set(second.chosen))
    assert len(lowest) == 30
    assert max(lowest) < min({*first.chosen, *second.chosen})  # the others come by their hash
    assert (first.labels, second.labels) == (27, 57)
    assert first.held_out == second.held_out == 3  # the same ones
    assert read_manifest(run.storage, ADAPTER).counts["labels"] == 87
    calls = [line for line in done.stderr.splitlines() if "labels: inputs" in line]
    assert [f"calls {n}" in line for n, line in zip((30, 30, 30), calls, strict=True)] == [True] * 3
    again = run_job("pipeline", tmp_path, **ROUNDS)
    assert again.returncode == 0
    assert again.stderr.count("already done") == 3


def test_a_round_that_is_interrupted_goes_on(tmp_path, settings, monkeypatch, local):
    own = settings(STORAGE__ROOT=tmp_path / "runs", **ROUNDS)
    run = open_run(own)
    chosen, stops = [], iter([True, False, False, False])

    def answer(run, others, count):
        chosen.append(sorted(others.list_ids())[-count:])
        if next(stops):
            raise StoppedError(143)
        return chosen[-1]

    monkeypatch.setattr("jobs.pipeline.choose_texts", answer)
    with pytest.raises(StoppedError):
        pipeline.run_rounds(run)
    assert read_rounds(run.storage) == []
    pipeline.run_rounds(run)
    assert len(chosen) == 3
    first = chosen[1]
    assert [each.chosen for each in read_rounds(run.storage)] == chosen[1:]
    # as if it had been killed after it wrote a round: the manifests are those of the round before
    assert read_manifest(run.storage, LABELS).counts["ok"] == 60
    label.main(own)
    assert read_manifest(run.storage, ADAPTER) is None
    assert set(first) < read_ids(run)
    assert len(load_round(run)) == 90


def test_rounds_end_when_another_is_not_worth_it(tmp_path, settings, monkeypatch, local):
    own = settings(
        STORAGE__ROOT=tmp_path / "runs", **ROUNDS | {"LABEL__STOP_GAIN": 100, "LABEL__ROUNDS": 4}
    )
    monkeypatch.setattr("jobs.pipeline.choose_texts", lambda run, others, n: others.list_ids()[:n])
    run = open_run(own)
    pipeline.run_rounds(run)
    (first,) = read_rounds(run.storage)
    assert len(first.chosen) == 22  # one point is no curve
    assert len(read_ids(run)) == 45
    pipeline.run_rounds(run)
    label.main(own)
    train.main(own)
    assert len(read_ids(run)) == 45
    # nothing that is paid for goes because a setting is changed or left out
    for change in ({"LABEL__ROUNDS": 1}, {"LABEL__ROUNDS": 3}, {"DATA__TRAIN_LIMIT": 80}):
        with pytest.raises(InputError, match="was made from something else"):
            label.main(settings(**ROUNDS | {"LABEL__ROUNDS": 4} | change))
    assert read_manifest(run.storage, ADAPTER)
    pipeline.run_rounds(open_run(settings(**ROUNDS | {"LABEL__ROUNDS": 4, "LABEL__STOP_GAIN": 0})))
    assert len(read_rounds(run.storage)) == 3


def test_the_rounds_students_are_neither_exported_nor_measured_on_parts(
    settings, monkeypatch, local
):
    own = settings(**ROUNDS | {"TRAIN__CURVE": "true", "TRAIN__EXPORT": "merged,gguf"})
    monkeypatch.setattr("jobs.pipeline.choose_texts", lambda run, others, n: others.list_ids()[:n])
    run = open_run(own)
    pipeline.run_rounds(run)
    assert len(read_rounds(run.storage)) == 2
    later = ("curve", "merged", "gguf")
    assert not [name for name in run.storage.list_files("") if name.startswith(later)]


def test_a_damaged_round_is_named(settings):
    run = open_run(settings(**ROUNDS))
    run.storage.write_json("rounds/1.json", {"labels": 3})
    with pytest.raises(InputError, match=r"rounds/1.json is damaged"):
        read_rounds(run.storage)


def test_more_rounds_than_examples_are_refused(settings):
    own = settings(**ROUNDS | {"DATA__TRAIN_LIMIT": 5, "LABEL__ROUNDS": 6})
    with pytest.raises(InputError, match=r"DISTILL_LABEL__ROUNDS=6 is more than the 5 examples"):
        label.main(own)


def test_the_sizes_of_rounds_add_up_to_the_budget():
    assert [size_round(100, 3, n) for n in (1, 2, 3)] == [34, 67, 100]


def test_unsure_texts_are_picked_more_often_and_not_only_they():
    rows = [Example(str(i), str(i)) for i in range(100)]
    sure = [-1.0 / (i + 1) for i in range(100)]  # the first ones are the least sure
    picked = [int(row.id) for seed in range(50) for row in pick_unsure(rows, sure, 20, seed)]
    counts = np.bincount(picked, minlength=100)
    assert counts[:10].mean() > 30
    assert 0 < counts[50:].mean() < 10
    assert len(pick_unsure(rows, sure, 200, 0)) == 100


def test_the_gain_follows_the_curve():
    """A power law is found again; what is flat gains nothing."""
    points = [(n, 1 - 0.9 * (n / 100) ** -0.4) for n in (125, 250, 500, 1_000)]
    gain = predict_gain(points, 10_000, 1_000)
    expected = 0.9 * (10**-0.4 - 20**-0.4)
    assert gain.value == pytest.approx(expected, abs=0.003)
    assert gain.low < expected < gain.high
    flat = predict_gain([(n, 0.7) for n in (125, 250, 500, 1_000)], 200, 1_000)
    assert flat.value == pytest.approx(0, abs=1e-6)
    assert flat.low <= flat.value <= flat.high < 0.06
    assert predict_gain(points[:1], 200, 1_000) is None
    assert predict_gain(points, 0, 1_000) is None
    assert predict_gain([(100, 1.0), (200, 1.0)], 200, 1_000).value == pytest.approx(0, abs=1e-6)


@pytest.mark.whole
def test_the_report_tells_what_more_labels_would_bring(tmp_path, settings):
    own = ROUNDS | {"LABEL__ROUNDS": 1, "DATA__TRAIN_LIMIT": 200, "TRAIN__CURVE": "true"}
    done = run_job("pipeline", tmp_path, **own)
    assert done.returncode == 0, done.stderr
    storage = open_run(settings(STORAGE__ROOT=tmp_path / "runs", **own)).storage
    curve = read_manifest(storage, CURVE)
    assert [count for count, _ in curve.summary["points"]] == [22, 45, 90, 180]
    assert curve.summary["held_out"] == 20
    text = (tmp_path / "runs/default/report.md").read_text()
    assert "Agreement by labels" in text
    assert "1,000 more labels: " in text
    half = tmp_path / "runs/default/curve/2.json"
    kept = json.loads(half.read_text())
    (tmp_path / "runs/default/curve/_manifest.json").unlink()
    half.write_text(json.dumps(kept | {"agreement": 0.123}))
    train.main(settings(STORAGE__ROOT=tmp_path / "runs", **own))  # reads what is measured
    assert read_manifest(storage, CURVE).summary["points"][2] == (90, 0.123)
    report.main(settings(STORAGE__ROOT=tmp_path / "runs", **own))
