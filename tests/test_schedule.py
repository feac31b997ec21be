import math

from hypothesis import given
from hypothesis import strategies as st

from common.training.schedule import find_best


def make_entry(update, share, error, loss=1.0):
    entry = {"step": update, "eval_agreement": share, "eval_agreement_error": error}
    return entry | {"eval_loss": loss}


@given(found=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_best_checkpoint_is_the_new_one_or_the_one_that_is_kept(found):
    """Of the older ones, only the best so far is still there."""
    history, kept = [], 0
    for update, (hits, loss) in enumerate(found, 1):
        share = hits / 30
        error = math.sqrt(share * (1 - share) / 30)
        history.append(make_entry(update, share, error, loss))
        assert find_best(history) in (update, kept)
        kept = find_best(history)


def test_a_history_of_an_earlier_version_gives_the_highest_with_the_lowest_loss():
    measured = [(0.4, 1.0), (0.6, 0.7), (0.6, 0.8), (0.59, 0.6)]
    history = [
        {"step": update, "eval_agreement": share, "eval_loss": loss}
        for update, (share, loss) in enumerate(measured, 1)
    ]
    assert find_best(history) == 2


def test_an_earlier_checkpoint_is_kept_only_for_a_clear_gain():
    measured = enumerate([0.5, 0.8, 0.78, 0.7], 1)
    history = [make_entry(update, share, 0.03) for update, share in measured]
    assert [find_best(history[:count]) for count in range(5)] == [0, 1, 2, 3, 3]


def test_a_student_that_hardly_ever_agrees_keeps_the_lowest_loss():
    """Long answers are never the same."""
    measured = [(0.0, 1.2), (0.005, 0.9), (0.0, 1.0), (0.0, 1.1)]
    history = [
        make_entry(update, share, 0.005 if share else 0.0, loss)
        for update, (share, loss) in enumerate(measured, 1)
    ]
    assert [find_best(history[:count]) for count in range(1, 5)] == [1, 2, 2, 2]
