import random

import pytest

from common.metrics.edits import (
    count_edits,
    edits_too_little,
    edits_too_much,
    find_edits,
    tokenize,
)


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
