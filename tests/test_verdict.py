"""May the student replace the teacher: every answer, also where parts are not measured."""

import pytest

from common.report.tables import Scores
from common.report.verdict import decide, find_strongest, format_usd, stand
from support.decision_parts import decide_on, make_cascade, make_comparison, make_savings

WON = make_comparison("base", 0.6, 0.5, 0.7)
WORSE = make_comparison("teacher", -0.1, -0.15, -0.05)


def make_scores(comparisons=(WON, WORSE), rows=800, systems=None, **parts):
    values = systems or {"copy": 0.1, "base": 0.2, "distilled": 0.8, "teacher": 0.9}
    metrics = {
        "task": "tiny",
        "main_metric": "exact_match",
        "rows": {"test": rows},
        "systems": {
            name: {"exact_match": {"value": value, "n": rows}} for name, value in values.items()
        },
        "comparisons": list(comparisons),
        "retention": 0.89,
    }
    return Scores(metrics | parts)


def decided(**parts):
    return make_scores(**decide_on({}, **parts))


def tell(scores):
    """Title and text of the statements, and the titles of the warnings."""
    statements = decide(scores).statements
    return {s.title: s.text for s in statements}, [s.title for s in statements if s.is_warning]


def test_a_share_that_holds():
    scores = decided()
    assert decide(scores).lead == (
        "The student may replace the teacher for 50% of the inputs, those that it is surest of."
    )
    told, warnings = tell(scores)
    assert told == {
        "Score": "The distilled student scores 80.0%, the teacher 90.0%: it keeps 89% of the "
        "teacher's score. The difference is −10.0 points (−15.0 to −5.0).",
        "Share": "On the 400 rows that had no say in the choice, the student answers 50%, those "
        "that it is surest of, and the teacher the rest. The score is 89.5%, 0.5 points less than "
        "the teacher's (−1.5 to +0.5), and the margin is 2.0 points.",
        "Savings": "$900 of $2,000 are saved for a million inputs. Labels and training cost $4.50, "
        "saved after 5,000 inputs.",
        "Better than": "It beats copying the input by 70.0 points and the base student by "
        "60.0 points.",
    }
    assert warnings == []


def test_all_inputs():
    scores = decided(cascade=make_cascade(2))
    assert decide(scores).lead.endswith("its score is within 2.0 points of the teacher's.")
    assert "the student answers all. The score" in tell(scores)[0]["Share"]


def test_a_share_that_does_not_hold():
    scores = decided(cascade=make_cascade(holds=False))
    assert decide(scores).lead.startswith("That the student may replace the teacher is not shown")
    told, warnings = tell(scores)
    assert "may be beyond the margin of 2.0 points. More test rows may settle it." in told["Share"]
    assert "$900 of $2,000 would be saved" in told["Savings"]
    assert warnings == ["Share"]
    far = tell(decided(cascade=make_cascade(2, holds=False)))[0]["Share"]
    assert "More test rows" not in far


def test_no_share_at_all():
    scores = decided(cascade=make_cascade(None))
    assert decide(scores).lead.startswith("The student may not replace the teacher: for no share")
    told, warnings = tell(scores)
    assert told["Savings"] == "None: the teacher answers all inputs."
    assert warnings == ["Share", "Savings"]


@pytest.mark.parametrize("cascade", [make_cascade(), make_cascade(None)])
def test_a_student_that_is_better_than_the_teacher(cascade):
    better = make_comparison("teacher", 0.1, 0.05, 0.15)
    scores = decided(cascade=cascade, comparisons=[WON, better])
    assert decide(scores).lead == "The student may replace the teacher: it is better."


@pytest.mark.parametrize(
    ("low", "how", "told"),
    [
        (-0.01, "no better", "Copying the input: the difference is +0.2 points (−1.0 to +0.9)"),
        (-0.05, "worse", "Copying the input: the difference is +0.2 points (−5.0 to −0.1)."),
    ],
)
def test_a_student_that_is_no_better_than_copying(low, how, told):
    high = 0.009 if how == "no better" else -0.001
    copied = make_comparison("copy", 0.002, low, high)
    scores = decided(comparisons=[make_comparison("base", 0.145, 0.1, 0.2), copied, WORSE])
    assert decide(scores).lead == (
        f"The student may not replace the teacher: it is {how} than copying the input."
    )
    statements, warnings = tell(scores)
    assert warnings == [f"{how[0].upper()}{how[1:]} than"]
    assert statements[warnings[0]].startswith(told)
    assert ("may be chance" in statements[warnings[0]]) == (how == "no better")


def test_a_student_that_is_no_better_than_the_base_student():
    level = [make_comparison(name, 0.01, -0.01, 0.03) for name in ("base", "base_few_shot")]
    systems = {"copy": 0.1, "base": 0.8, "base_few_shot": 0.8, "distilled": 0.8, "teacher": 0.9}
    scores = decided(comparisons=level, systems=systems)
    assert decide(scores).lead.endswith(
        " But it is no better than the base student and the base student with few-shot examples."
    )
    assert tell(scores)[1] == ["No better than"] * 2


@pytest.mark.parametrize(
    ("comparisons", "lead"),
    [
        ([WORSE], "The student scores less than the teacher."),
        ([make_comparison("teacher", -0.01, -0.03, 0.01)], "these rows cannot tell their scores"),
        ([make_comparison("teacher", 0.1, 0.05, 0.15)], "The student may replace the teacher: it"),
    ],
)
def test_a_run_of_an_older_version(comparisons, lead):
    scores = make_scores(comparisons)
    assert lead in decide(scores).lead
    told, _ = tell(scores)
    assert told["Share"].startswith("Not measured: it takes the student's confidence")
    assert told["Savings"] == "Not measured, as the share is not."


def test_too_few_rows():
    told, _ = tell(make_scores(rows=60))
    assert told["Share"].startswith("Not measured: 60 rows are too few")


def test_almost_nothing_is_known():
    scores = make_scores([], systems={"distilled": 0.5})
    assert decide(scores).lead == "Whether the student may replace the teacher is not measured."
    told, warnings = tell(scores)
    assert told["Score"].startswith("The distilled student scores 50.0%")
    assert "Better than" not in told
    assert warnings == []
    unmeasured = make_scores([], systems={"distilled": None, "teacher": None})
    assert "not measured" in decide(unmeasured).lead


def test_savings_that_are_none_or_not_known():
    told, warnings = tell(decided(savings=make_savings(None, saved=None, inputs=None)))
    assert told["Savings"] == "Not known: the teacher's price is not known."
    assert warnings == []
    told, warnings = tell(decided(savings=make_savings(saved=-30.0, inputs=None)))
    assert "($30.00 more for a million inputs)" in told["Savings"]
    assert warnings == ["Savings"]
    told, _ = tell(decided(savings=make_savings(student=0.0)))
    assert told["Savings"].endswith("Here the student's machine costs nothing.")


def test_the_strongest_of_what_needs_no_training():
    assert find_strongest(make_scores()) == "base"
    systems = {"copy": 0.0, "base": 0.01, "base_few_shot": 0.46, "distilled": 0.8}
    assert find_strongest(make_scores(systems=systems)) == "base_few_shot"
    assert find_strongest(make_scores(systems={"distilled": 0.8})) == "base"


def test_a_metric_that_is_better_low():
    described = {"exact_match": {"title": "Edits left", "is_share": False, "is_better_low": True}}
    scores = make_scores([make_comparison("base", -0.3, -0.4, -0.2), WORSE], metrics=described)
    assert stand(scores, "base") == "better"
    assert stand(scores, "copy") == "worse"  # by the values alone
    assert stand(scores, "teacher") == "better"


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "$0"), (0.00124, "$0.00124"), (1.3, "$1.30"), (1234.5, "$1,234")]
)
def test_dollars(amount, text):
    assert format_usd(amount) == text
