import random
import time

import pytest

from common.data.testset import TestRow
from common.evaluation.predictions import make_prediction_table
from common.metrics.edits import (
    Edit,
    count_edits,
    edits_too_little,
    edits_too_much,
    find_edits,
    tokenize,
)
from common.metrics.metrics import METRICS
from common.records import Response


def test_tokens_are_words_and_signs():
    assert tokenize("L'œuf, c’est « bon » !") == [
        *("L", "'", "œuf", ",", "c", "’", "est", "«", "bon", "»", "!")
    ]


def test_edits_rebuild_the_changed_text():
    rng = random.Random(0)
    for _ in range(200):
        before, after = ([rng.choice("abcd") for _ in range(rng.randint(0, 9))] for _ in range(2))
        tokens = list(before)
        for edit in reversed(find_edits(" ".join(before), " ".join(after))):
            tokens[edit.start : edit.end] = edit.tokens
        assert tokens == after


@pytest.mark.parametrize(
    ("text", "prediction", "references", "counts", "too_much", "too_little"),
    [
        ("a b c", "a b c", ["a b c"], (0, 0, 0), 0, 0),
        ("a b c", "a x c", ["a x c"], (1, 0, 0), 0, 0),
        ("a b c", "a x c", ["a y c"], (0, 1, 1), 0, 0),  # wrong, but at the right place
        ("a b c", "a b c", ["a x c"], (0, 0, 1), 0, 1),
        ("a b c", "a x c", ["a b c"], (0, 1, 0), 1, 0),
        ("a b c", "a b d", ["x b c"], (0, 1, 1), 1, 1),
        ("a b c", "a b b c", ["a b x c"], (0, 1, 1), 0, 0),  # both put something there
        ("a b c", "", ["a b c"], (0, 1, 0), 1, 0),
        ("a b c", "a x c", ["a y c", "a x c"], (1, 0, 0), 0, 0),  # the best reference counts
        ("a b c d e", "no idea what", ["a b c d x"], (0, 1, 1), 1, 0),  # all is changed
        ("a b c d", "a x c d", ["a b c d", "a x c e"], (1, 0, 1), 0, 0),
    ],
)
def test_edits_are_right_wrong_or_missing(
    text, prediction, references, counts, too_much, too_little
):
    assert count_edits(text, prediction, references) == counts
    assert edits_too_much(text, prediction, references) == too_much
    assert edits_too_little(text, prediction, references) == too_little


def make_long_pair(words):
    rng = random.Random(0)
    before = [rng.choice(["the", "of", ",", str(rng.randint(0, 999))]) for _ in range(words)]
    after = [token if rng.random() < 0.7 else "x" for token in before]
    return " ".join(before), " ".join(after)


def test_long_texts_are_compared_in_a_moment():
    text, changed = make_long_pair(16_000)
    begun = time.process_time()
    edits = find_edits(text, changed)
    assert time.process_time() - begun < 2
    tokens = tokenize(text)
    for edit in reversed(edits):
        tokens[edit.start : edit.end] = edit.tokens
    assert tokens == tokenize(changed)


def test_very_long_texts_are_compared_in_little_memory(monkeypatch):
    monkeypatch.setattr("common.metrics.edits._MOST_PAIRS", 10)
    assert find_edits("a b c d e f", "a x c d f") == (Edit(1, 2, ("x",)), Edit(4, 5, ()))


def test_predictions_have_edits_where_a_metric_compares_them():
    assert {name for name, metric in METRICS.items() if metric.of_edits} == {
        *("edit_precision", "edit_recall", "edit_f05", "over_edit_rate", "under_edit_rate")
    }
    rows, answers = [TestRow("1", "a b", ["a c"], {})], [Response("a c", 1, 0.1)]
    told = make_prediction_table(rows, answers)["edits"].to_pylist()
    assert told == [[{"start": 1, "end": 2, "tokens": ["c"]}]]
    assert make_prediction_table(rows, answers, has_edits=False)["edits"].to_pylist() == [None]
