import pytest

from common.metrics import (
    exact_match,
    exact_match_normalized,
    normalize,
    summarize,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("prediction", "references", "strict", "normalized"),
    [
        ("She goes.", ["She goes."], 1, 1),
        ("She goes.", ["He goes.", "She goes."], 1, 1),
        ("She goes.", ["She goes"], 0, 0),
        ("she goes.", ["She goes."], 0, 0),
        ("She  goes. ", ["She goes."], 0, 1),
        ("It’s “new”.", ['It\'s "new".'], 0, 1),
        ("Il est «là».", ['Il est "là".'], 0, 1),
        ("cafe\u0301", ["café"], 0, 1),
        ("ﬁne", ["fine"], 0, 1),
        ("cafe", ["café"], 0, 0),
        ("à\u00a0Paris", ["à Paris"], 0, 1),
        ("", [""], 1, 1),
        ("", [], 0, 0),
        ("goes", ["She goes."], 0, 0),
    ],
)
def test_exact_match(prediction, references, strict, normalized):
    assert exact_match(prediction, references) == strict
    assert exact_match_normalized(prediction, references) == normalized


def test_normalising_twice_changes_nothing_more():
    text = normalize("  It’s\t“ﬁne” …\n")
    assert text == normalize(text) == 'It\'s "fine" ...'


@pytest.mark.parametrize(
    ("mean", "n", "low", "high"),
    [
        # R: prop.test(x, n, correct = FALSE)$conf.int
        (0.5, 10, 0.2366, 0.7634),
        (0.8, 10, 0.4902, 0.9433),
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (0.0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(mean, n, low, high):
    assert wilson_interval(mean, n) == pytest.approx((low, high), abs=5e-5)


def test_summary():
    summary = summarize([1.0, 0.0, 1.0, 1.0])
    assert (summary["value"], summary["n"]) == (0.75, 4)
    assert summary["interval"] == pytest.approx([0.3006, 0.9544], abs=5e-5)
    assert summarize([]) == {"value": 0.0, "n": 0, "interval": [0.0, 1.0]}
