import asyncio
import json
from pathlib import Path

import pytest

from common.journal import FOLDER, JournalWriter, read_journal
from common.replies import Reply
from common.storage import RunStorage


def make_reply(key, body="{}"):
    return Reply(key, http_status=200, body=body, attempts=1, seconds=0.5)


def append(storage, *replies, writer=None):
    """Appends replies at the same time, as concurrent calls do."""

    async def run():
        target = writer or JournalWriter(storage)
        await asyncio.gather(*(target.append(reply) for reply in replies))

    asyncio.run(run())


def test_no_journal_is_empty(storage):
    assert read_journal(storage) == {}


def test_a_reply_is_durable_when_append_returns(storage):
    async def run():
        writer = JournalWriter(storage)
        for key in ("a", "b"):
            await writer.append(make_reply(key))
            assert read_journal(storage)[key] == make_reply(key)

    asyncio.run(run())


@pytest.mark.parametrize(
    "body", ["", "two\nlines\r\n", '{"a": "é 😀"}', "\u2028\x85\x00", "\ud83d"]
)
def test_any_body_comes_back_as_it_came(storage, body):
    append(storage, make_reply("a", body), make_reply("b"))
    assert read_journal(storage) == {"a": make_reply("a", body), "b": make_reply("b")}


def test_concurrent_replies_share_writes(storage):
    replies = [make_reply(str(i)) for i in range(200)]
    append(storage, *replies)
    assert read_journal(storage) == {reply.key: reply for reply in replies}
    assert len(storage.list_files(FOLDER)) < 5


def test_two_writers_do_not_overwrite_each_other(storage):
    async def run():
        writers = [JournalWriter(storage), JournalWriter(storage)]
        for i in range(2):
            await asyncio.gather(
                *(writer.append(make_reply(f"{i} {n}")) for n, writer in enumerate(writers))
            )

    asyncio.run(run())
    assert sorted(read_journal(storage)) == ["0 0", "0 1", "1 0", "1 1"]


def test_a_last_line_that_was_cut_off_is_passed_over(storage):
    append(storage, make_reply("a"), make_reply("b"))
    (name,) = storage.list_files(FOLDER)
    storage.write_bytes(name, storage.read_bytes(name)[:-5])
    assert read_journal(storage) == {"a": make_reply("a")}
    append(storage, make_reply("c"))
    assert set(read_journal(storage)) == {"a", "c"}


@pytest.mark.parametrize("line", ["null", "3", "[]", '{"key": "x"}', '{"key": "x", "new": 1}'])
def test_lines_that_are_no_replies_are_passed_over(settings, line):
    storage = RunStorage(settings())
    storage.write_bytes(f"{FOLDER}/old.jsonl", f"{line}\n\n".encode())
    append(storage, make_reply("a"))
    assert read_journal(storage) == {"a": make_reply("a")}


def test_a_write_error_reaches_every_caller(settings):
    storage = RunStorage(settings())
    Path(storage.path()).mkdir(parents=True)
    Path(storage.path(FOLDER)).write_text("a file is in the way")

    async def run():
        writer = JournalWriter(storage)
        calls = (writer.append(make_reply(key)) for key in "abc")
        return await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(outcome, OSError) for outcome in asyncio.run(run()))


def test_a_reply_after_a_half_written_one_is_not_lost(settings, full_disk):
    storage = RunStorage(settings())

    async def run():
        writer = JournalWriter(storage)
        with full_disk(), pytest.raises(OSError, match="too large"):
            await writer.append(make_reply("a"))
        await writer.append(make_reply("b"))

    asyncio.run(run())
    assert read_journal(storage) == {"b": make_reply("b")}


def test_an_answer_is_kept_before_a_reply_that_cannot_be_read(storage):
    good = Reply("key", 200, json.dumps({"choices": [{"text": "fine"}]}), 1, 0.1)
    bad = Reply("key", 200, "<html>", 1, 0.1)
    for name, reply in (("a", good), ("b", bad)):
        storage.write_bytes(f"journal/{name}.jsonl", json.dumps(vars(reply)).encode() + b"\n")
    assert read_journal(storage) == {"key": good}
