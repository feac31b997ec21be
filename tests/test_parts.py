"""Label parts and sealed replies: what a kill leaves, and what a resume makes of it."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest

from common.data.examples import Examples
from common.errors import DistillError
from common.labels.label_row import Outcome, is_final, make_label
from common.labels.parts import Parts
from common.labels.resume import make_keys
from common.records import Example, LabelRow, hash_text
from common.tasks.task import Task
from common.teacher.journal import JournalWriter, iterate_journal
from common.teacher.replies import Reply
from common.teacher.requests import make_request
from common.teacher.sealed import tidy_journal
from support.labelling import open_priced_run, read_replies, read_rows

TASK = Task(name="echo")
TEXTS = [f"text {n}" for n in range(6)]
EXAMPLES = [Example(hash_text(text), text) for text in TEXTS]
ALL = Examples.of(EXAMPLES)
USED = (50 * 1.0 + 20 * 10.0) / 1e6


@pytest.fixture
def run(settings, tmp_path):
    return open_priced_run(settings, tmp_path, TASK)


def with_samples(run, count):
    label = run.settings.label.model_copy(update={"samples": count})
    return replace(run, settings=run.settings.model_copy(update={"label": label}))


def reply_to(run, example, sample=0, answer="fine", status=200):
    body = make_request(run.settings.teacher, TASK, example.text)
    key = make_keys(with_samples(run, sample + 1).settings, body)[sample]
    usage = {"prompt_tokens": 50, "completion_tokens": 20}
    choice = {"message": {"content": answer}, "finish_reason": "stop"}
    content = json.dumps({"choices": [choice], "usage": usage})
    return Reply(key, status, content, 1, 0.5, 600, 100, example_id=example.id)


def finish(run, example, *replies):
    return Outcome(make_label(example, replies, TASK), replies)


def append(run, *replies):
    async def write():
        writer = JournalWriter(run.storage)
        await asyncio.gather(*map(writer.append, replies))

    asyncio.run(write())


def test_a_part_and_its_sealed_replies(run):
    parts = Parts(run, "labels")
    replies = [reply_to(run, example) for example in EXAMPLES[:4]]
    parts.write([finish(run, e, r) for e, r in zip(EXAMPLES, replies, strict=False)])
    assert parts.find_done(ALL).tolist() == [True] * 4 + [False] * 2
    known = Parts(run, "labels").resume(ALL)
    assert known.missing.list_ids() == [example.id for example in EXAMPLES[4:]]
    assert known.cost_usd == pytest.approx(4 * USED)
    assert sorted(read_replies(run.storage), key=str) == sorted(replies, key=str)


def test_what_a_part_holds_is_not_read_again(run, monkeypatch):
    parts = Parts(run, "labels")
    parts.write([finish(run, example, reply_to(run, example)) for example in EXAMPLES])
    monkeypatch.setattr(type(run.storage), "read_table", lambda *a: pytest.fail("it is read"))
    known = Parts(run, "labels").resume(ALL)
    assert (len(known.missing), known.cost_usd) == (0, pytest.approx(6 * USED))


def test_another_price_is_that_of_the_replies(run):
    Parts(run, "labels").write([finish(run, EXAMPLES[0], reply_to(run, EXAMPLES[0]))])
    unpriced = replace(run)
    vars(unpriced)["price"] = None
    assert Parts(unpriced, "labels").resume(ALL).cost_usd == 0
    dear = replace(run)
    vars(dear)["price"] = replace(run.price, input=2.0)
    assert Parts(dear, "labels").resume(ALL).cost_usd == pytest.approx(USED + 50 / 1e6)


def test_a_kill_before_the_rows_are_written(run):
    """The replies are sealed, and still in the journal."""
    replies = [reply_to(run, example) for example in EXAMPLES]
    append(run, *replies)
    parts = Parts(run, "labels")
    parts.write([finish(run, e, r) for e, r in zip(EXAMPLES, replies, strict=True)])
    for name in run.storage.list_files("labels"):
        run.storage.remove(name)
    again = Parts(run, "labels")
    known = again.resume(ALL)
    assert (len(known.missing), known.cost_usd) == (0, pytest.approx(6 * USED))
    assert again.find_done(ALL).all()
    assert len(read_replies(run.storage)) == 12
    tidy_journal(run.storage)
    assert len(read_replies(run.storage)) == 6
    assert list(iterate_journal(run.storage)) == []


def test_a_kill_before_the_journal_is_removed(run):
    """Nothing is paid for twice in the books."""
    replies = [reply_to(run, example) for example in EXAMPLES]
    append(run, *replies[:4])
    parts = Parts(run, "labels")
    parts.write([finish(run, e, r) for e, r in zip(EXAMPLES, replies[:3], strict=False)])
    known = Parts(run, "labels").resume(ALL)
    assert known.cost_usd == pytest.approx(4 * USED)
    assert known.missing.list_ids() == [example.id for example in EXAMPLES[4:]]
    assert len(list(iterate_journal(run.storage))) == 4  # an orphan may still write to it
    tidy_journal(run.storage)
    assert list(iterate_journal(run.storage)) == []
    assert read_rows(run, EXAMPLES)[0].cost_usd == pytest.approx(4 * USED)


def test_other_label_rules_cost_nothing(run):
    parts = Parts(run, "labels")
    parts.write([finish(run, example, reply_to(run, example)) for example in EXAMPLES])
    other = Parts(run, "other rules")
    assert not other.find_done(ALL).any()
    known = other.resume(ALL)
    assert (len(known.missing), known.cost_usd) == (0, pytest.approx(6 * USED))
    names = other.finish(ALL)
    other.remove_others(names)
    assert run.storage.list_files("labels") == sorted(names)
    assert len(read_replies(run.storage)) == 6


def test_more_samples_are_asked_for_beside_those_that_are_sealed(run):
    Parts(run, "one").write([finish(run, e, reply_to(run, e)) for e in EXAMPLES])
    run = with_samples(run, 2)
    known = Parts(run, "two").resume(ALL)
    assert (len(known.missing), len(known.replies)) == (6, 6)
    more = Parts(run, "two")
    outcomes = []
    for example in EXAMPLES[:3]:
        first, second = reply_to(run, example), reply_to(run, example, sample=1)
        outcomes.append(Outcome(make_label(example, [first, second], TASK), [second]))
    more.write(outcomes)
    for name in run.storage.list_files("labels"):  # the rules change: they come from two files
        run.storage.remove(name)
    known, rows = read_rows(run, EXAMPLES)
    assert {row.samples for row in rows.values()} == {2}
    assert len(rows) == len(known.replies) == 3
    assert known.cost_usd == pytest.approx(9 * USED)


def test_rows_without_an_answer_are_those_of_one_session(run):
    failed = [
        Outcome(LabelRow(e.id, e.text, "failed", error="timeout", samples=1)) for e in EXAMPLES
    ]
    first = Parts(run, "labels")
    first.write(failed)
    assert not first.find_done(ALL).any()
    assert len(first.finish(ALL)) == 1
    second = Parts(run, "labels")
    with pytest.raises(DistillError, match="6 of 6 rows were lost"):
        second.finish(ALL)


@pytest.mark.parametrize(
    ("status", "error", "final"),
    [
        ("ok", None, True),
        ("filtered", "chatter", True),
        ("failed", "length", True),
        ("failed", "refusal", True),
        ("failed", "empty_text", True),
        ("failed", "content_policy", False),
        ("failed", "bad_response", False),
        ("failed", "timeout", False),
    ],
)
def test_what_is_final(status, error, final):
    assert is_final(LabelRow("a", "text", status, error=error)) is final


def test_rows_that_two_workers_wrote_are_there_once(run):
    """One of them outlived its job."""
    one, other = Parts(run, "labels"), Parts(run, "labels")
    outcomes = [finish(run, e, reply_to(run, e)) for e in EXAMPLES]
    one.write(outcomes[:4])
    other.write(outcomes[2:])
    names = other.finish(ALL)
    rows = [row for name in names for row in run.storage.read_table(name).to_pylist()]
    assert sorted(row["id"] for row in rows) == sorted(e.id for e in EXAMPLES)
    assert other.finish(ALL) == names


def test_a_writer_goes_on_in_another_file_with_what_is_open(run):
    replies = [reply_to(run, example) for example in EXAMPLES]

    async def write():
        writer = JournalWriter(run.storage)
        await asyncio.gather(*map(writer.append, replies[:4]))
        old = await writer.start_file(lambda: [replies[3]])
        await writer.append(replies[4])
        run.storage.remove(*old)
        return old

    asyncio.run(write())
    assert list(iterate_journal(run.storage)) == [replies[3], replies[4]]


def test_writes_wait_while_a_file_is_started(run):
    """A reply that becomes durable meanwhile is in the new file."""
    replies = [reply_to(run, example) for example in EXAMPLES]

    async def write():
        writer = JournalWriter(run.storage)
        await writer.append(replies[0])
        started, *_ = await asyncio.gather(
            writer.start_file(lambda: [replies[0]]), *map(writer.append, replies[1:])
        )
        run.storage.remove(*started)

    asyncio.run(write())
    assert {reply.key for reply in iterate_journal(run.storage)} == {r.key for r in replies}


def test_a_part_is_full_by_rows_or_by_characters(run, monkeypatch):
    monkeypatch.setattr("common.labels.parts._PART_ROWS", 3)
    parts = Parts(run, "labels")
    for example in EXAMPLES[:2]:
        parts.add(finish(run, example, reply_to(run, example)))
    assert not parts.is_full
    parts.add(finish(run, EXAMPLES[2], reply_to(run, EXAMPLES[2])))
    assert parts.is_full
    assert len(parts.take()) == 3
    monkeypatch.setattr("common.labels.parts._PART_CHARACTERS", 1000)
    parts.add(finish(run, EXAMPLES[3], reply_to(run, EXAMPLES[3], answer="long " * 300)))
    assert parts.is_full


def test_masks_are_of_all_examples(run):
    assert Parts(run, "labels").find_done(Examples.of([])).tolist() == []
    assert np.array_equal(Parts(run, "labels").find_done(ALL), np.zeros(6, bool))
