import json
from dataclasses import replace

import pytest

from common.labels.crash_record import InFlightRecord
from common.labels.resume import make_keys
from common.records import Example, hash_text
from common.run.lock import RunLock
from common.tasks.task import Task
from common.teacher.replies import Reply
from common.teacher.requests import bound_prompt_tokens, make_request
from support.clock import FakeTime
from support.labelling import open_priced_run, read_rows, resume_rows

TASK = Task(name="echo")
TEXTS = ["one", "two", "a longer one", "and four"]
EXAMPLES = [Example(hash_text(text), text) for text in TEXTS]


@pytest.fixture
def run(settings, tmp_path):
    return open_priced_run(settings, tmp_path, TASK)


def make_reply(run, text, answer="fine", status=200, usage=(50, 20), seconds=0.5):
    body = make_request(run.settings.teacher, TASK, text)
    content = {
        "choices": [{"message": {"content": answer}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]},
    }
    (key,) = make_keys(run.settings, body)
    return Reply(key, status, json.dumps(content), 1, seconds, bound_prompt_tokens(body))


def write(run, name, *replies):
    lines = [json.dumps(vars(reply)) + "\n" for reply in replies]
    run.storage.write_bytes(f"journal/{name}.jsonl", "".join(lines).encode())


def worst(run, *texts):
    bodies = [make_request(run.settings.teacher, TASK, text) for text in texts]
    return sum(run.price.worst_cost(bound_prompt_tokens(body), 100) for body in bodies)


USED = (50 * 1.0 + 20 * 10.0) / 1e6


def test_every_answer_costs_its_usage_and_a_call_without_one_its_worst(run):
    one = make_reply(run, "one")
    lost = Reply(one.key, 0, "timeout: no answer", 1, 3.0, one.most_prompt_tokens)
    broken = Reply("b", 200, '{"choices": [', 1, 3.0, one.most_prompt_tokens)
    write(run, "a", one, lost, broken)
    write(run, "b", one)  # the same, as after a crash while parts were merged
    write(run, "c", make_reply(run, "one", seconds=0.7))  # paid a second time
    known, rows = read_rows(run, EXAMPLES)
    assert known.cost_usd == pytest.approx(2 * USED + 2 * worst(run, "one"))
    assert [row.label for row in rows.values()] == ["fine"]


def test_without_a_crashed_session_nothing_is_added(run):
    write(run, "a", make_reply(run, "one"))
    InFlightRecord(run.storage).write(0)
    assert resume_rows(run, EXAMPLES)[0].cost_usd == pytest.approx(USED)
    assert run.storage.list_files("") == ["journal/a.jsonl"]


def test_a_crashed_session_is_charged_once_for_the_dearest_that_are_missing(run, caplog):
    write(run, "a", make_reply(run, "one"))
    InFlightRecord(run.storage).write(2)
    known, rows = resume_rows(run, EXAMPLES)
    expected = USED + worst(run, "a longer one", "and four")
    assert known.cost_usd == pytest.approx(expected)
    assert list(rows) == [EXAMPLES[0].id]
    assert "up to 2 calls may be paid for and lost" in caplog.text
    assert not any("in-flight" in name for name in run.storage.list_files(""))
    assert resume_rows(run, EXAMPLES)[0].cost_usd == pytest.approx(expected)


def test_the_calls_of_a_crashed_job_of_version_0_1_are_charged_whoever_takes_its_lock(run):
    """It kept them in its lock, which may be taken by a job that labels nothing."""
    content = {"owner": "0123", "pid": 7, "in_flight": 2, "lost": 0}
    run.storage.write_json("lock/1.json", content)
    time = FakeTime()
    for job in ("train", "evaluate"):
        lock = RunLock(run.storage, job, time.clock, time.sleep)
        lock.acquire()
        lock.release()
    known, _rows = resume_rows(run, EXAMPLES)
    assert known.cost_usd == pytest.approx(worst(run, "a longer one", "and four"))


def test_a_session_that_is_killed_while_it_charges_another_charges_it_once(run, monkeypatch):
    InFlightRecord(run.storage).write(2)

    def crash(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("common.labels.resume.forget_crashed", crash)
        resume_rows(run, EXAMPLES)
    known, _rows = resume_rows(run, EXAMPLES)
    assert known.cost_usd == pytest.approx(worst(run, "a longer one", "and four"))


def test_no_more_calls_can_be_lost_in_flight_than_are_missing(run):
    write(run, "a", *(make_reply(run, text) for text in TEXTS[1:]))
    InFlightRecord(run.storage).write(64)
    known, _rows = resume_rows(run, EXAMPLES)
    assert known.cost_usd == pytest.approx(3 * USED + worst(run, "one"))


def test_all_samples_of_the_dearest_example_may_have_been_in_flight(run):
    label = run.settings.label.model_copy(update={"samples": 3})
    run = replace(run, settings=run.settings.model_copy(update={"label": label}))
    InFlightRecord(run.storage).write(4)
    known, _rows = resume_rows(run, EXAMPLES)
    assert known.cost_usd == pytest.approx(3 * worst(run, "a longer one") + worst(run, "and four"))


def test_calls_of_a_dead_worker_were_asked_again_and_count_also_when_none_is_missing(run):
    write(run, "a", *(make_reply(run, text) for text in TEXTS))
    InFlightRecord(run.storage).write(0, lost=3)
    known, rows = resume_rows(run, EXAMPLES)
    assert known.cost_usd == pytest.approx(4 * USED + 3 * worst(run, "a longer one"))
    assert len(rows) == 4


def test_without_a_price_dollars_are_0_and_lost_calls_are_kept_for_later(run):
    InFlightRecord(run.storage).write(1)
    unpriced = replace(run)
    vars(unpriced)["price"] = None
    assert resume_rows(unpriced, EXAMPLES)[0].cost_usd == 0
    assert read_rows(run, EXAMPLES)[0].cost_usd == pytest.approx(worst(run, "a longer one"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"in_flight": "x", "lost": -1}'])
def test_a_record_that_cannot_be_read_charges_nothing(run, content):
    run.storage.write_bytes("journal/in-flight-1.json", content)
    assert resume_rows(run, EXAMPLES)[0].cost_usd == 0
    assert run.storage.list_files("") == []
