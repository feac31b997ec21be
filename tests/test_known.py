import json

import pytest

from common.labels.known import label_known, make_keys, resume
from common.prices.prices import find_price
from common.records import Example, hash_text
from common.run.lock import Remains
from common.run.storage import RunStorage
from common.tasks.model import Task
from common.teacher.replies import Reply
from common.teacher.requests import bound_prompt_tokens, make_request

TASK = Task(name="echo")
TEXTS = ["one", "two", "a longer one", "and four"]
EXAMPLES = [Example(hash_text(text), text) for text in TEXTS]


class FakeLock:
    """What `resume` needs of a lock."""

    def __init__(self, *remains):
        self.inherited = Remains("0123", *remains) if remains else None
        self.risked = []

    def risk(self, in_flight, lost=0):
        self.risked.append((in_flight, lost))


@pytest.fixture
def own(settings, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "big"\ninput = 1.0\noutput = 10.0\n', "utf-8")
    return settings(TEACHER__MODEL="big", TEACHER__PRICES=str(prices), TEACHER__MAX_TOKENS="100")


def make_reply(own, text, answer="fine", status=200, usage=(50, 20), seconds=0.5):
    body = make_request(own.teacher, TASK, text)
    content = {
        "choices": [{"message": {"content": answer}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]},
    }
    (key,) = make_keys(own, body)
    return Reply(key, status, json.dumps(content), 1, seconds, bound_prompt_tokens(body))


def write(storage, name, *replies):
    lines = [json.dumps(vars(reply)) + "\n" for reply in replies]
    storage.write_bytes(f"journal/{name}.jsonl", "".join(lines).encode())


def worst(own, *texts):
    price = find_price(own.teacher)
    bodies = [make_request(own.teacher, TASK, text) for text in texts]
    return sum(price.worst_cost(bound_prompt_tokens(body), 100) for body in bodies)


USED = (50 * 1.0 + 20 * 10.0) / 1e6


def test_every_answer_costs_its_usage_and_a_call_without_one_its_worst(own):
    storage = RunStorage(own)
    one = make_reply(own, "one")
    lost = Reply(one.key, 0, "timeout: no answer", 1, 3.0, one.most_prompt_tokens)
    broken = Reply("b", 200, '{"choices": [', 1, 3.0, one.most_prompt_tokens)
    write(storage, "a", one, lost, broken)
    write(storage, "b", one)  # the same, as after a crash while parts were merged
    write(storage, "c", make_reply(own, "one", seconds=0.7))  # paid a second time
    known = label_known(own, TASK, storage, EXAMPLES)
    assert known.cost_usd == pytest.approx(2 * USED + 2 * worst(own, "one"))
    assert [row.label for row in known.rows.values()] == ["fine"]


def test_without_a_killed_job_nothing_is_added(own):
    storage, lock = RunStorage(own), FakeLock()
    write(storage, "a", make_reply(own, "one"))
    assert resume(own, TASK, storage, EXAMPLES, lock).cost_usd == pytest.approx(USED)
    assert storage.list_files("") == ["journal/a.jsonl"]


def test_the_calls_of_a_killed_job_count_as_the_dearest_that_are_missing(own, caplog):
    storage, lock = RunStorage(own), FakeLock(2, 0)
    write(storage, "a", make_reply(own, "one"))
    known = resume(own, TASK, storage, EXAMPLES, lock)
    expected = USED + worst(own, "a longer one", "and four")
    assert known.cost_usd == pytest.approx(expected)
    assert list(known.rows) == [EXAMPLES[0].id]
    assert "up to 2 calls may be paid for and lost" in caplog.text
    assert lock.risked == [(0, 0)]
    again = resume(own, TASK, storage, EXAMPLES, FakeLock(2, 0))  # killed before it said so
    assert again.cost_usd == pytest.approx(expected)
    assert label_known(own, TASK, storage, EXAMPLES).cost_usd == pytest.approx(expected)


def test_no_more_calls_can_be_lost_in_flight_than_are_missing(own):
    storage = RunStorage(own)
    write(storage, "a", *(make_reply(own, text) for text in TEXTS[1:]))
    known = resume(own, TASK, storage, EXAMPLES, FakeLock(64, 0))
    assert known.cost_usd == pytest.approx(3 * USED + worst(own, "one"))


def test_all_samples_of_the_dearest_example_may_have_been_in_flight(own):
    label = own.label.model_copy(update={"samples": 3})
    own = own.model_copy(update={"label": label})
    known = resume(own, TASK, RunStorage(own), EXAMPLES, FakeLock(4, 0))
    assert known.cost_usd == pytest.approx(3 * worst(own, "a longer one") + worst(own, "and four"))


def test_calls_of_a_dead_worker_were_asked_again_and_count_also_when_none_is_missing(own):
    storage = RunStorage(own)
    write(storage, "a", *(make_reply(own, text) for text in TEXTS))
    known = resume(own, TASK, storage, EXAMPLES, FakeLock(0, 3))
    assert known.cost_usd == pytest.approx(4 * USED + 3 * worst(own, "a longer one"))
    assert len(known.rows) == 4


def test_without_a_price_dollars_are_0_and_lost_calls_are_kept_for_later(own):
    storage = RunStorage(own)
    teacher = own.teacher.model_copy(update={"prices": None})
    unpriced = own.model_copy(update={"teacher": teacher})
    assert resume(unpriced, TASK, storage, EXAMPLES, FakeLock(1, 0)).cost_usd == 0
    cost_usd = label_known(own, TASK, storage, EXAMPLES).cost_usd
    assert cost_usd == pytest.approx(worst(own, "a longer one"))
