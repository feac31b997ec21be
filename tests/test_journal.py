import asyncio
import json
from pathlib import Path

import pytest

from common.errors import DistillError, StorageError
from common.run.storage import RunStorage
from common.teacher.journal import (
    FOLDER,
    JournalWriter,
    compact_journal,
    iterate_journal,
)
from common.teacher.replies import Reply
from support.failing_store import running_failing_store


def make_reply(key, body="{}"):
    return Reply(key, http_status=200, body=body, attempts=1, seconds=0.5)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("common.teacher.journal._FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr("common.teacher.journal._OBJECT_STORE_SECONDS", 0.01)


@pytest.fixture
def failing_store(bucket, s3_endpoint, monkeypatch):
    with running_failing_store(bucket, s3_endpoint, monkeypatch) as store:
        yield store


def append(storage, *replies, writer=None):
    """Appends replies at the same time, as concurrent calls do."""

    async def run():
        target = writer or JournalWriter(storage)
        await asyncio.gather(*(target.append(reply) for reply in replies))

    asyncio.run(run())


def read_journal(storage):
    return {reply.key: reply for reply in iterate_journal(storage)}


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


def test_what_stands_in_the_way_is_told_to_every_caller(settings):
    storage = RunStorage(settings())
    Path(storage.path()).mkdir(parents=True)
    Path(storage.path(FOLDER)).write_text("a file is in the way")

    async def run():
        writer = JournalWriter(storage)
        calls = (writer.append(make_reply(key)) for key in "abc")
        return await asyncio.gather(*calls, return_exceptions=True)

    for error in asyncio.run(run()):
        assert type(error) is DistillError
        assert str(error).startswith(f"3 paid replies wait in memory: {storage.url}/journal/")
        assert "check the folder" in str(error)
        assert "\n" not in str(error)


async def wait_until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_replies_outlive_a_disk_that_is_full_for_a_while(settings, full_disk):
    storage = RunStorage(settings())

    async def run():
        writer = JournalWriter(storage)
        await writer.append(make_reply("first"))
        with full_disk():
            calls = [asyncio.create_task(writer.append(make_reply(key))) for key in "abc"]
            await wait_until(lambda: writer.storage_error)
            calls += [asyncio.create_task(writer.append(make_reply(key))) for key in "def"]
            await asyncio.sleep(0.02)
            assert writer.waiting == 6
            assert "cannot be written (OSError: File too large)" in writer.storage_error
        await asyncio.gather(*calls)
        assert writer.storage_error is None
        assert writer.waiting == 0

    asyncio.run(run())
    assert sorted(read_journal(storage)) == [*"abcdef", "first"]
    assert len(storage.list_files(FOLDER)) == 2  # failed attempts leave nothing
    for name in storage.list_files(FOLDER):
        assert all(json.loads(line) for line in storage.read_bytes(name).splitlines())


@pytest.mark.parametrize("failure", [503, "drop"])
def test_replies_outlive_a_store_that_fails_for_a_while(failing_store, settings, failure, caplog):
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))

    async def run():
        writer = JournalWriter(storage)
        failing_store.fails = lambda method, path: failure
        calls = [asyncio.create_task(writer.append(make_reply(key))) for key in "abc"]
        await wait_until(lambda: writer.storage_error)
        calls += [asyncio.create_task(writer.append(make_reply(key))) for key in "def"]
        failing_store.fails = lambda method, path: None
        await asyncio.gather(*calls)
        assert writer.storage_error is None

    asyncio.run(run())
    assert sorted(read_journal(storage)) == list("abcdef")
    assert "3 paid replies wait in memory" in caplog.text
    assert "can be written again" in caplog.text


def test_patience_ends_but_nothing_is_forgotten(failing_store, settings):
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))

    async def run():
        writer = JournalWriter(storage, retry_seconds=0.05)
        failing_store.fails = lambda method, path: 503
        for call in (writer.append(make_reply("a")), writer.append(make_reply("b"))):
            with pytest.raises(DistillError, match=r"paid replies wait .*s3://.*SlowDown"):
                await call
        failing_store.fails = lambda method, path: None
        await writer.append(make_reply("c"))

    asyncio.run(run())
    assert sorted(read_journal(storage)) == ["a", "b", "c"]


def test_a_refusal_ends_the_waiting_at_once(failing_store, settings):
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))
    failing_store.fails = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(DistillError, match=r"1 paid replies wait .*AccessDenied.*AWS_\* variables"):
        append(storage, make_reply("a"))


def test_a_reply_whose_caller_left_becomes_durable(storage):
    async def run():
        writer = JournalWriter(storage)
        call = asyncio.create_task(writer.append(make_reply("a")))
        await asyncio.sleep(0)
        call.cancel()
        await wait_until(lambda: not writer.waiting)
        assert set(read_journal(storage)) == {"a"}

    asyncio.run(run())


def test_a_writer_whose_flush_was_cancelled_loses_nothing(storage):
    async def run():
        writer = JournalWriter(storage)
        call = asyncio.create_task(writer.append(make_reply("a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        writer._flusher.cancel()
        await wait_until(writer._flusher.done)
        await writer.append(make_reply("b"))
        await call

    asyncio.run(run())
    assert set(read_journal(storage)) == {"a", "b"}


def write_parts(storage, number):
    """Small parts of one reply each; gives the replies."""
    replies = [make_reply(f"{n:03}", body="\u2028 é" * n) for n in range(number)]
    for reply in replies:
        line = json.dumps(vars(reply), ensure_ascii=False).encode()
        storage.write_bytes(f"{FOLDER}/{reply.key}.jsonl", line + b"\n")
    return {reply.key: reply for reply in replies}


def test_every_reply_of_many_parts_is_read(storage):
    replies = write_parts(storage, 40)
    storage.write_bytes(f"{FOLDER}/notes.json", b"no part")
    assert list(iterate_journal(storage)) == list(replies.values())


def test_many_small_parts_are_merged_as_they_are(storage, monkeypatch):
    monkeypatch.setattr("common.teacher.journal._MERGED_BYTES", 2000)
    replies = write_parts(storage, 40)
    storage.write_bytes(f"{FOLDER}/half.jsonl", b'{"key": "cut o')
    storage.write_bytes(f"{FOLDER}/notes.json", b"no part")
    before = sorted(b"".join(read_lines(storage)).splitlines())
    compact_journal(storage)
    assert read_journal(storage) == replies
    assert sorted(b"".join(read_lines(storage)).splitlines()) == before
    if not storage.is_local:
        names = storage.list_files(FOLDER)
        assert len(names) < 16
        assert f"{FOLDER}/notes.json" in names
        compact_journal(storage)
        assert storage.list_files(FOLDER) == names


def read_lines(storage):
    names = [name for name in storage.list_files(FOLDER) if name.endswith(".jsonl")]
    return [storage.read_bytes(name).rstrip(b"\n") + b"\n" for name in names]


def test_a_writer_replaces_its_small_objects(failing_store, settings, monkeypatch):
    monkeypatch.setattr("common.teacher.journal._SMALL_PARTS", 4)
    monkeypatch.setattr("common.teacher.journal._OBJECT_STORE_SECONDS", 0)
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))
    replies = [make_reply(f"{n:02}") for n in range(13)]

    async def run():
        writer = JournalWriter(storage)
        for number, reply in enumerate(replies, 1):
            await writer.append(reply)
            assert len(read_journal(storage)) == number
            assert len(storage.list_files(FOLDER)) < 8

    asyncio.run(run())
    assert len(storage.list_files(FOLDER)) == 5  # twice 5 in one, 3 small
    assert list(iterate_journal(storage)) == replies
    removals = [method for method, _ in failing_store.requests if method in ("DELETE", "POST")]
    assert removals == ["POST", "POST"]


@pytest.mark.parametrize("failure", [501, 403, 500])
def test_small_objects_that_cannot_be_removed_do_no_harm(
    failing_store, settings, monkeypatch, failure
):
    monkeypatch.setattr("common.teacher.journal._SMALL_PARTS", 2)
    monkeypatch.setattr("common.teacher.journal._OBJECT_STORE_SECONDS", 0)
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))
    methods = ("POST",) if failure == 501 else ("POST", "DELETE")
    failing_store.fail(1000, failure, methods)
    replies = [make_reply(f"{n:02}") for n in range(6)]

    async def run():
        writer = JournalWriter(storage)
        for reply in replies:
            await writer.append(reply)

    asyncio.run(run())
    assert read_journal(storage) == {reply.key: reply for reply in replies}
    assert len(storage.list_files(FOLDER)) == (2 if failure == 501 else 6)


def test_parts_that_are_replaced_while_they_are_read_are_not_missed(bucket, settings):
    storage = RunStorage(settings(STORAGE__ROOT=f"{bucket}/runs"))
    replies = write_parts(storage, 20)
    read_many = storage.read_many

    def replace_and_read(parts):
        storage.read_many = read_many
        names = list(parts)[5:]
        content = b"".join(storage.read_bytes(name) for name in names)
        storage.write_bytes(f"{FOLDER}/later.jsonl", content)
        storage.remove(*names)
        return read_many(parts)

    storage.read_many = replace_and_read
    assert read_journal(storage) == replies


def test_few_parts_are_left_alone(storage):
    write_parts(storage, 16)
    names = storage.list_files(FOLDER)
    compact_journal(storage)
    assert storage.list_files(FOLDER) == names


@pytest.mark.parametrize("failing", ["write_bytes", "remove"])
def test_a_merge_that_is_cut_short_loses_nothing(storage, monkeypatch, failing):
    def fail(*arguments):
        raise StorageError("no more")

    replies = write_parts(storage, 40)
    monkeypatch.setattr(storage, failing, fail)
    if storage.is_local:
        compact_journal(storage)
    else:
        with pytest.raises(StorageError):
            compact_journal(storage)
    assert read_journal(storage) == replies
    monkeypatch.undo()
