"""The charts behind the verdict, and what a plot does at its edges."""

import re

import pytest

from common.report.decision_charts import (
    describe_calibration,
    draw_calibration,
    draw_cascade,
    list_costs,
    make_calibration_table,
    make_cascade_table,
)
from common.report.plot import Plot, find_ticks, make_axis
from common.report.tables import Scores
from support.decision_parts import (
    decide_on,
    make_cascade,
    make_confidence,
    make_point,
    make_savings,
)
from support.report_parts import make_metrics, make_tables


def make_scores(**parts):
    tables = make_tables({s: ["a"] for s in ("distilled", "teacher")}, ["a"], [["a"]], ["en"])
    return Scores(decide_on(make_metrics(tables), **parts))


def test_the_cascade_is_drawn_with_its_margin_and_choice():
    drawn = draw_cascade(make_scores())
    assert drawn.count("<svg") == 2
    assert drawn.count("<polygon") == 1  # the interval
    for text in ("teacher alone 90.0%", "margin: 2.0 points less", "chosen: 50%", "$1.10"):
        assert f">{text}</text>" in drawn
    assert 'aria-label="Exact match by the share' in drawn
    assert 'class="distilled" cx' in drawn


def test_a_choice_that_does_not_hold_is_hollow_and_none_is_not_marked():
    assert 'class="hollow distilled"' in draw_cascade(make_scores(cascade=make_cascade(1, False)))
    drawn = draw_cascade(make_scores(cascade=make_cascade(None)))
    assert "chosen" not in drawn
    assert "<circle" not in drawn


def test_without_a_price_there_are_no_dollars():
    scores = make_scores(savings=make_savings(None, saved=None, inputs=None))
    assert draw_cascade(scores).count("<svg") == 1
    assert make_cascade_table(scores).head[-1] == "Confidence from"
    unmeasured = Scores({**scores.data, "cascade": None, "savings": None, "confidence": None})
    assert draw_cascade(unmeasured) == draw_calibration(unmeasured) == ""
    assert make_cascade_table(unmeasured) is None


def test_the_student_is_asked_first_about_everything():
    costs = list_costs(make_cascade(), make_savings(teacher=2.0, student=0.1))
    assert costs == [(0.0, 2.1), (0.5, 1.1), (1.0, 0.1)]
    table = make_cascade_table(make_scores())
    assert [cell.text for cell in table.rows[1]] == ["50%", "89.5%", "−0.5 points", "80%", "$1.10"]


def test_a_score_that_is_better_low_has_its_margin_above():
    metrics = {"exact_match": {"title": "Edits", "is_share": False, "is_better_low": True}}
    points = [make_point(0.0, 0.0), make_point(1.0, 0.3)]
    cascade = make_cascade(None) | {"points": points}
    drawn = draw_cascade(make_scores(cascade=cascade, metrics=metrics))
    levels = [float(y) for y in re.findall(r'<line class="rule \w+" x1="48" y1="([\d.]+)"', drawn)]
    assert levels[1] < levels[0]  # of the drawing, which grows downwards


def test_the_calibration_has_its_diagonal_and_intervals():
    drawn = draw_calibration(make_scores())
    assert drawn.count("<circle") == drawn.count("whisker") == 10
    assert 'class="diagonal"' in drawn
    text = describe_calibration(make_confidence())
    assert "4.1 points off (expected calibration error)" in text
    assert "AUROC 0.83" in text
    assert "AUROC" not in describe_calibration(make_confidence() | {"auroc": None})
    assert len(make_calibration_table(make_confidence()).rows) == 10


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.84, 0.93, [0.84, 0.86, 0.88, 0.9, 0.92, 0.94])],
)
def test_ticks_are_round(low, high, ticks):
    assert find_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0.5, 0.5), (-3, 7), (1e-9, 2e-9), (0, 1e9)])
def test_ticks_hold_all_values(low, high):
    ticks = find_ticks(low, high)
    assert ticks[0] * (1 - 1e-9) <= low <= high <= ticks[-1] * (1 + 1e-9)
    assert 2 <= len(ticks) <= 8


def test_no_text_of_a_plot_is_markup():
    plot = Plot(make_axis("<i>", [0, 1], ".0%"), make_axis("", [0, 1], ".0%"))
    plot.add_text(0.5, 0.5, "<b>")
    assert "&lt;i&gt;" in plot.render('"<u>')
    assert "<b>" not in plot.render("")
    assert 'aria-label="&quot;&lt;u&gt;"' in plot.render('"<u>')
