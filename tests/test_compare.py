"""Runs side by side: on the page, in the terminal, and with parts missing."""

import re
from dataclasses import replace

import pyarrow as pa
import pytest

from common.errors import InputError, SettingsError
from common.report.compare import (
    ComparedRun,
    make_cost_table,
    make_difference_table,
    make_score_table,
    make_settings_table,
)
from common.report.compare_page import render_comparison, render_comparison_text
from common.report.tables import Scores
from common.run.manifest import Manifest
from common.run.storage import RunStorage
from jobs import report
from support.decision_parts import decide_on, make_cascade
from support.report_parts import MANIFESTS, make_metrics, make_tables

TEXTS = [f"text {i}" for i in range(40)]


def make_run(name, right, texts=TEXTS, manifests=MANIFESTS, **changes):
    """A run whose distilled student is right on the first rows."""
    answers = {
        "copy": ["no"] * len(texts),
        "base": ["no"] * len(texts),
        "distilled": [t if i < right else "no" for i, t in enumerate(texts)],
        "teacher": texts,
    }
    tables = make_tables(answers, texts, [[t] for t in texts], ["en"] * len(texts))
    for rows in tables.values():
        for row in rows:
            row["id"] = row["text"].encode().hex().ljust(32, "0")
    metrics = make_metrics(tables) | changes
    return ComparedRun(name, Scores(metrics), manifests, pa.Table.from_pylist(tables["distilled"]))


def list_cells(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_the_scores_of_all_systems():
    runs = [make_run("one", 20), make_run("two", 30)]
    table = make_score_table(runs)
    assert table.head == [
        "Run",
        "Copying the input",
        "Base student",
        "Distilled student",
        "Teacher",
        "Kept of the teacher's score",
        "Test rows",
    ]
    assert list_cells(table) == [
        ["one", "0.0%", "0.0%", "50.0%", "100.0%", "75.0%", "40"],
        ["two", "0.0%", "0.0%", "75.0%", "100.0%", "75.0%", "40"],
    ]
    assert table.rows[0][0].note == ""


def test_a_system_that_one_run_lacks_is_empty():
    one, two = make_run("one", 20), make_run("two", 30)
    del two.scores.by_system["base"]
    endpoint = {"exact_match": {"value": 0.5, "n": 40, "interval": [0.4, 0.6]}}
    two.scores.data["systems"]["our-endpoint"] = endpoint
    runs = [one, replace(two, scores=Scores(two.scores.data))]
    table = make_score_table(runs)
    assert table.head[5] == "Endpoint our-endpoint"
    assert list_cells(table)[0][5] == list_cells(table)[1][2] == ""
    assert "our-endpoint" in render_comparison(runs)


def test_differences_are_paired_by_id_whatever_the_order():
    one, two = make_run("one", 20), make_run("two", 30)
    shuffled = replace(two, answers=two.answers.take(list(range(39, -1, -1))))
    for run in (two, shuffled):
        (row,) = make_difference_table([one, run]).rows
        assert [cell.text for cell in row[:2]] == ["two – one", "+25.0 points"]
        low, high = re.fullmatch(r"\+([\d.]+) to \+([\d.]+)", row[1].note).groups()
        assert 10 < float(low) < 25 < float(high) < 40
        assert float(row[2].text) == 0.002  # McNemar's: 10 to 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"texts": [*TEXTS[1:], "another"]}, "not the same test rows: 39 rows in both"),
        ({"main_metric": "edits"}, "another main metric"),
    ],
)
def test_what_cannot_be_paired_says_so(changes, reason):
    runs = [make_run("one", 20), make_run("two", 30, **changes)]
    assert list_cells(make_difference_table(runs)) == [["two – one", reason, "", ""]]
    lost = [make_run("one", 20), replace(make_run("two", 30), answers=None)]
    assert list_cells(make_difference_table(lost))[0][1] == "predictions are missing"


def test_settings_that_differ_are_listed_with_the_default_of_what_a_run_lacks():
    labels = MANIFESTS["labels"]
    other = {
        "run": "two",
        "teacher": {"model": "big-model", "temperature": 1.0},
        "label": {"samples": 3},
        "storage": {"root": "elsewhere"},
    }
    changed = MANIFESTS | {"labels": replace(labels, settings=other, code_version="0.2.0")}
    runs = [make_run("one", 20), make_run("two", 30, manifests=changed)]
    assert list_cells(make_settings_table(runs)) == [
        ["label.samples", "1", "3"],
        ["teacher.temperature", "0.0", "1.0"],
        ["version of distill", "0.1.0", "0.2.0"],
    ]
    same = [make_run("one", 20), make_run("two", 30)]
    assert make_settings_table(same).rows == []
    assert "the settings are the same" in render_comparison(same)
    assert "settings are the same" in render_comparison_text(same)


def test_costs_and_seconds():
    decided = decide_on({}, make_cascade(holds=False))
    runs = [make_run("one", 20, **decided), make_run("two", 30, manifests={})]
    assert list_cells(make_cost_table(runs)) == [
        ["Labels, dollars", "$2.00", "–"],
        ["Labels", "4,000", "–"],
        ["Label job", "0:01:50", "–"],
        ["Train job", "0:01:01", "–"],
        ["Answered by the student", "50%, not confirmed", "–"],
        ["Saved for a million inputs", "$900", "–"],
    ]


def test_learning_curves_are_drawn_over_each_other():
    curve = Manifest("curve", {}, {"points": [(100, 0.5), (200, 0.6)], "held_out": 50})
    with_curve = MANIFESTS | {"curve": curve}
    runs = [make_run(name, 20, manifests=with_curve) for name in ("one", "two")]
    assert render_comparison(runs).count("<polyline") == 2
    assert "<svg" not in render_comparison([make_run("one", 20), make_run("two", 30)])


def test_nothing_of_a_run_is_markup_and_no_script_may_run():
    nasty = "<script>alert(1)</script>"
    manifest = replace(MANIFESTS["labels"], settings={"teacher": {"model": nasty}})
    page = render_comparison(
        [make_run("one", 20), make_run("two", 30, manifests={"labels": manifest}, task=nasty)]
    )
    assert "<script" not in page
    assert "script-src 'none'" in page


def store(settings, name, run):
    storage = RunStorage(settings(RUN=name))
    storage.write_json("metrics.json", run.scores.data)
    table = run.answers.replace_schema_metadata({"distill.fingerprint": "{}"})
    storage.write_table("predictions/distilled.parquet", table)
    for step, manifest in run.manifests.items():
        storage.write_json(f"{step}/_manifest.json", manifest.to_json())


def test_the_job_compares_runs_under_the_same_root(settings, capsys, tmp_path):
    for name, right in (("one", 20), ("two", 30)):
        store(settings, name, make_run(name, right))
    report.main(settings(REPORT__COMPARE="one, two"))
    printed = capsys.readouterr().out
    assert "| two – one                       | +25.0 points (" in printed
    assert printed.endswith(f"comparison: {tmp_path}/runs/compare.html\n")
    page = (tmp_path / "runs/compare.html").read_text()
    assert "<title>Comparison of one, two</title>" in page
    assert "+25.0 points" in page
    with pytest.raises(InputError, match=r"runs/three/metrics\.json does not exist: .*'three'"):
        report.main(settings(REPORT__COMPARE="one,three"))


@pytest.mark.parametrize("names", ["one", "one,one", "one,../two"])
def test_names_that_cannot_be_compared(settings, names):
    with pytest.raises(SettingsError, match="DISTILL_REPORT__COMPARE"):
        settings(REPORT__COMPARE=names)


def test_a_comparison_is_not_served(settings):
    with pytest.raises(SettingsError, match="shows one run's report"):
        settings(REPORT__COMPARE="one,two", REPORT__SERVE="localhost:8080")
