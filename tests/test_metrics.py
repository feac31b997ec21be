import json
import random
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from common.errors import InputError
from common.metrics.metrics import METRICS, exact_match, exact_match_normalized
from common.metrics.text import normalize

WORDS = ["the", "a", "old", "dog", "dogs", "sleep", "in", "house,", "big.", "é", "œuf", "Straße"]


def score(name, texts, predictions, references):
    metric = METRICS[name]
    return float(metric.combine(metric.measure(texts, predictions, references).sum(0)))


def make_sentence(rng, most=12):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, most)))


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
    assert exact_match("", prediction, references) == strict
    assert exact_match_normalized("", prediction, references) == normalized


def test_normalising_twice_changes_nothing_more():
    text = normalize("  It’s\t“ﬁne” …\n")
    assert text == normalize(text) == 'It\'s "fine" ...'


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_scores_the_references_best_and_takes_any_row(name):
    texts = ["a dog sleep .", "ok", "", "no reference"]
    references = [["a dog sleeps ."], ["fine"], ["x", "y"], []]
    predictions = ["a dog sleeps .", "fine", "x", ""]
    perfect = score(name, texts[:2], predictions[:2], references[:2])
    worse = score(name, texts[:2], ["dogs sleep !", "no"], references[:2])
    metric = METRICS[name]
    assert perfect == {"chrf": 100, "over_edit_rate": 0, "under_edit_rate": 0}.get(name, 1)
    assert worse < perfect or (metric.is_better_low and worse >= perfect)
    assert np.isfinite(score(name, texts, predictions, references))
    assert np.isfinite(score(name, texts, [""] * 4, references))
    statistics = metric.measure(texts, predictions, references)
    assert statistics.shape[0] == 4
    assert metric.combine(np.stack([statistics, statistics]).sum(1)).shape == (2,)


@pytest.mark.parametrize(
    "case", json.loads((Path(__file__).with_name("support") / "gleu_cases.json").read_text())
)
def test_gleu_is_that_of_the_published_program(case):
    """Whose results on random sentences, with one to four references, are in the file."""
    expected = case.pop("gleu")
    assert score("gleu", **case) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_chrf_is_sacrebleus(seed):
    rng = random.Random(seed)
    predictions = [make_sentence(rng) for _ in range(9)]
    references = [[make_sentence(rng) for _ in range(3)] for _ in range(9)]
    expected = CHRF().corpus_score(predictions, list(zip(*references, strict=True))).score
    assert score("chrf", [""] * 9, predictions, references) == pytest.approx(expected, abs=1e-9)


def test_macro_f1_by_hand():
    """yes: 2 hits of 3 made and 2 wanted, F1 0.8; no: 1 of 1 and 2, F1 2/3."""
    references = [["Yes"], ["yes"], ["no"], ["no"]]
    predictions = ["yes", "YES ", "yes", "No"]
    assert score("macro_f1", [""] * 4, predictions, references) == pytest.approx((0.8 + 2 / 3) / 2)
    assert score("accuracy", [""] * 4, predictions, references) == 0.75
    assert score("macro_f1", [""], ["maybe"], [["no"]]) == 0


def test_macro_f1_is_for_classes():
    texts = [str(i) for i in range(600)]
    with pytest.raises(InputError, match="macro_f1 is for classification"):
        score("macro_f1", texts, texts, [[text] for text in texts])


def test_gleu_of_many_rows_stays_small():
    n = 9000
    rows = METRICS["gleu"].measure(["a b"] * n, ["a c"] * n, [["a c", "a d"], *[["a c"]] * (n - 1)])
    assert rows.nbytes < 200e6
    assert METRICS["gleu"].thin(rows).shape == (n, 200)


def test_edit_figures_by_hand():
    """Made: He goes (right), a, orange (wrong). Missing: eats an. Precision 1/3, recall 1/2."""
    texts = ["he go to school", "she eat a apple", "all is well"]
    references = [["He goes to school"], ["she eats an apple"], ["all is well"]]
    predictions = ["He goes to a school", "she eat a orange", "all is well"]
    assert score("edit_precision", texts, predictions, references) == pytest.approx(1 / 3)
    assert score("edit_recall", texts, predictions, references) == pytest.approx(1 / 2)
    f05 = 1.25 * (1 / 6) / (0.25 / 3 + 1 / 2)
    assert score("edit_f05", texts, predictions, references) == pytest.approx(f05)
    assert score("over_edit_rate", texts, predictions, references) == pytest.approx(2 / 3)
    assert score("under_edit_rate", texts, predictions, references) == pytest.approx(1 / 3)
