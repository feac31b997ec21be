import math

from hypothesis import given
from hypothesis import strategies as st

from common.training.schedule import find_best


@given(hits=st.lists(st.integers(0, 30), min_size=1, max_size=12))
def test_the_best_checkpoint_is_the_new_one_or_the_one_that_is_kept(hits):
    """Of the older ones, only the best so far is still there."""
    history, kept = [], 0
    for update, count in enumerate(hits, 1):
        share = count / 30
        error = math.sqrt(share * (1 - share) / 30)
        history.append({"step": update, "eval_agreement": share, "eval_agreement_error": error})
        assert find_best(history) in (update, kept)
        kept = find_best(history)


def test_an_older_history_without_standard_errors_gives_the_highest():
    measured = [0.4, 0.6, 0.6, 0.59]
    history = [{"step": i, "eval_agreement": share} for i, share in enumerate(measured, 1)]
    assert find_best(history) == 3


def test_an_earlier_checkpoint_is_kept_only_for_a_clear_gain():
    history = [
        {"step": update, "eval_agreement": share, "eval_agreement_error": 0.03}
        for update, share in enumerate([0.5, 0.8, 0.78, 0.7], 1)
    ]
    assert [find_best(history[:count]) for count in range(5)] == [0, 1, 2, 3, 3]
