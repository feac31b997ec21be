import errno
import json
import threading
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from common.data.examples import load_examples
from common.data.testset import load_test_rows
from common.errors import InputError, StorageError
from common.run.storage import RunStorage
from common.tasks.task import load_task
from support.failing_store import running_failing_store
from support.labelling import list_examples

TASK_TOML = 'name = "tiny"\n[student]\nprompt = "Do: {text}"\n'


def test_bytes_come_back(storage):
    storage.write_bytes("labels/part.bin", b"first")
    storage.write_bytes("labels/part.bin", b"second\x00")
    assert storage.read_bytes("labels/part.bin") == b"second\x00"


def test_json_comes_back(storage):
    content = {"text": "é “…” 😀", "list": [1, None, 2.5]}
    storage.write_json("metrics.json", content)
    assert storage.read_json("metrics.json") == content


def test_a_table_comes_back(storage):
    schema = pa.schema({"id": pa.string(), "references": pa.list_(pa.string()), "n": pa.int64()})
    rows = [{"id": "a", "references": ["x", "y"], "n": 1}, {"id": None, "references": [], "n": 2}]
    table = pa.Table.from_pylist(rows, schema=schema)
    storage.write_table("labels/part.parquet", table)
    assert storage.read_table("labels/part.parquet").equals(table)


def test_files_are_listed_below_a_folder(storage):
    for name in ("labels/b", "labels/a", "labels/deep/c", "labels-old/d", "metrics.json"):
        storage.write_bytes(name, b"x")
    assert storage.list_files("labels") == ["labels/a", "labels/b", "labels/deep/c"]
    assert storage.list_files("nothing") == []


def test_only_files_exist(storage):
    assert not storage.exists("labels/a")
    storage.write_bytes("labels/a", b"")
    assert storage.exists("labels/a")
    assert not storage.exists("labels")


def test_what_another_client_writes_is_seen(storage, settings):
    assert storage.list_files("journal") == []
    RunStorage(settings()).write_bytes("journal/a", b"x")
    assert storage.list_files("journal") == ["journal/a"]


def test_a_missing_file_is_an_error(storage):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("nothing.json")


def test_folders_go_up_and_come_down(storage, tmp_path):
    source = tmp_path / "adapter"
    (source / "deep").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "deep/weights").write_bytes(b"\x00\x01")
    names = storage.upload(source, "checkpoints/7")
    assert names == ["checkpoints/7/config.json", "checkpoints/7/deep/weights"]
    storage.download(names, "checkpoints/7", tmp_path / "back")
    assert (tmp_path / "back/config.json").read_text() == "{}"
    assert (tmp_path / "back/deep/weights").read_bytes() == b"\x00\x01"


def test_runs_are_apart(settings):
    first, second = (RunStorage(settings(RUN=run)) for run in ("one", "one-more"))
    first.write_bytes("labels/a", b"x")
    assert first.list_files("") == ["labels/a"]
    assert second.list_files("") == []


def test_a_local_write_that_fails_leaves_the_old_content_and_nothing_else(settings, full_disk):
    storage = RunStorage(settings())
    storage.write_bytes("metrics.json", b"old")
    with full_disk(), pytest.raises(StorageError, match=r"metrics\.json cannot be .*too large"):
        storage.write_bytes("metrics.json", b"new" * 1000)
    assert storage.read_bytes("metrics.json") == b"old"
    assert [path.name for path in Path(storage.path()).iterdir()] == ["metrics.json"]


def test_what_a_killed_write_leaves_is_not_listed(settings):
    storage = RunStorage(settings())
    storage.write_bytes("labels/a", b"x")
    Path(storage.path("labels/.b.0123")).write_bytes(b"half")
    assert storage.list_files("labels") == ["labels/a"]


def test_opening_a_local_root_writes_nothing(settings, tmp_path):
    RunStorage(settings())
    assert not (tmp_path / "runs").exists()


def test_a_missing_bucket_is_named(bucket, settings):
    with pytest.raises(InputError, match=r"no-such-bucket.*AWS_ENDPOINT_URL") as caught:
        RunStorage(settings(STORAGE__ROOT="s3://no-such-bucket/runs"))
    assert "\n" not in str(caught.value)


def test_an_unknown_protocol_is_named(settings):
    with pytest.raises(InputError, match="DISTILL_STORAGE__ROOT='nonsense://x'"):
        RunStorage(settings(STORAGE__ROOT="nonsense://x"))


def put(url, content):
    with fsspec.open(url, "w", encoding="utf-8") as file:
        file.write(content)


def test_a_task_file_comes_from_s3(bucket):
    put(f"{bucket}/tasks/tiny.toml", TASK_TOML)
    assert load_task(f"{bucket}/tasks/tiny.toml").make_student_prompt("it") == "Do: it"
    with pytest.raises(InputError, match=r"other\.toml"):
        load_task(f"{bucket}/tasks/other.toml")


@pytest.mark.parametrize("layout", ["train.jsonl", "train/part-0.jsonl"])
def test_examples_come_from_a_folder_on_s3(bucket, settings, layout, tmp_path):
    (tmp_path / "tiny.toml").write_text(TASK_TOML)
    task = load_task("./tiny.toml")
    for split in ("train", "test"):
        row = json.dumps({"text": split, "reference": split.upper()})
        put(f"{bucket}/data/{layout.replace('train', split)}", row)
    loaded = settings(DATA__SOURCE=f"{bucket}/data")
    assert [row.text for row in list_examples(load_examples(loaded, task))] == ["train"]
    assert [row.references for row in load_test_rows(loaded, task).rows] == [["TEST"]]


def test_examples_come_from_a_file_on_s3(bucket, settings, tmp_path):
    (tmp_path / "tiny.toml").write_text(TASK_TOML)
    put(f"{bucket}/data.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    loaded = settings(DATA__SOURCE=f"{bucket}/data.jsonl")
    assert [row.text for row in list_examples(load_examples(loaded, load_task("./tiny.toml")))] == [
        "one",
        "two",
    ]


@pytest.mark.parametrize("source", ["{}/missing.jsonl", "{}/missing", "s3://no-such-bucket/data"])
def test_missing_examples_on_s3_are_named(bucket, settings, source, tmp_path):
    (tmp_path / "tiny.toml").write_text(TASK_TOML)
    loaded = settings(DATA__SOURCE=source.format(bucket))
    with pytest.raises(InputError, match=source.format(bucket)) as caught:
        load_examples(loaded, load_task("./tiny.toml"))
    assert "\n" not in str(caught.value)


def test_damaged_files_are_named(storage):
    storage.write_bytes("labels/_manifest.json", b"{")
    storage.write_bytes("labels/part.parquet", b"PAR1 no parquet PAR1")
    for read, name in (
        (storage.read_json, "labels/_manifest.json"),
        (storage.read_table, "labels/part.parquet"),
        (storage.read_table, "labels/missing.parquet"),
    ):
        with pytest.raises(InputError, match=f"{name} is damaged or missing"):
            read(name)


def test_a_root_that_is_a_file_is_refused_before_any_call(settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        RunStorage(settings(STORAGE__ROOT=str(tmp_path / "file/runs")))


@pytest.fixture
def failing_store(bucket, s3_endpoint, monkeypatch):
    with running_failing_store(bucket, s3_endpoint, monkeypatch) as store:
        yield store


@pytest.mark.parametrize("failure", [503, 500, "drop"])
def test_a_store_that_fails_for_a_moment_is_asked_again(failing_store, settings, failure):
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))
    for use in (
        lambda: storage.write_bytes("labels/a", b"whole"),
        lambda: storage.read_bytes("labels/a"),
        lambda: storage.exists("labels/a"),
        lambda: storage.list_files("labels"),
        lambda: storage.create_bytes("lock", b"mine"),
        lambda: storage.remove("lock"),
        lambda: RunStorage(settings()),
    ):
        left = failing_store.fail(2, failure)
        use()
        assert not left
    assert storage.list_files("") == ["labels/a"]


def test_a_store_that_fails_for_long_is_named_in_one_line(failing_store, settings):
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))
    failing_store.fail(1000, 500)
    for use in (
        lambda: storage.write_bytes("labels/a", b"x"),
        lambda: storage.read_bytes("labels/a"),
        lambda: storage.exists("labels/a"),
        lambda: storage.list_files("labels/a"),
        lambda: storage.create_bytes("labels/a", b"x"),
        lambda: storage.remove("labels/a"),
        lambda: storage.remove("labels/a", "labels/b"),
        lambda: RunStorage(settings()),
    ):
        with pytest.raises(
            StorageError, match=r"s3://.*default.* cannot be .*; run again"
        ) as caught:
            use()
        assert "\n" not in str(caught.value)
        assert caught.value.is_transient


def test_what_no_patience_mends_is_not_asked_again(failing_store, settings):
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))
    failing_store.fail(1000, 403)
    failing_store.requests.clear()
    with pytest.raises(StorageError, match=r"AccessDenied.*check the bucket") as caught:
        storage.write_bytes("labels/a", b"x")
    assert not caught.value.is_transient
    assert len(failing_store.requests) == 1
    with pytest.raises(InputError, match=r"cannot be read .*Forbidden"):
        RunStorage(settings())


def test_a_cut_off_answer_is_not_taken_for_the_whole(failing_store, settings):
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))
    storage.write_bytes("labels/a", b"0123456789" * 100)
    failing_store.fail(1, "half", ["GET"])
    assert storage.read_bytes("labels/a") == b"0123456789" * 100
    failing_store.fail(1000, "half", ["GET"])
    with pytest.raises(StorageError, match="cannot be read"):
        storage.read_bytes("labels/a")


def test_one_of_many_creates_a_file(storage):
    outcomes = {}

    def create(number):
        outcomes[number] = storage.create_bytes("lock/1.json", b"%d" % number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (number for number, won in outcomes.items() if won)
    assert storage.read_bytes("lock/1.json") == b"%d" % winner
    assert storage.list_files("") == ["lock/1.json"]


def test_a_create_whose_answer_was_lost_counts(failing_store, settings):
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))
    storage.write_bytes("lock", b"mine")
    assert storage.create_bytes("lock", b"mine")
    assert not storage.create_bytes("lock", b"another's")


def test_a_store_without_conditional_writes_lets_one_create(failing_store, settings, monkeypatch):
    monkeypatch.setattr("common.run.stores._SETTLE_SECONDS", 0.001)
    storage = RunStorage(settings(STORAGE__ROOT=f"{failing_store.bucket}/runs"))
    refusals = iter((501, None, 501))
    failing_store.fails = lambda method, path: next(refusals, None) if method == "PUT" else None
    assert storage.create_bytes("lock", b"one")
    assert not storage.create_bytes("lock", b"other")
    assert storage.read_bytes("lock") == b"one"


def test_a_disk_without_hard_links_creates_too(settings, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    storage = RunStorage(settings())
    assert storage.create_bytes("lock", b"one")
    assert not storage.create_bytes("lock", b"other")
    assert storage.list_files("") == ["lock"]
    assert storage.read_bytes("lock") == b"one"


def test_an_append_that_fails_is_cut_off_again(settings, full_disk):
    storage = RunStorage(settings())
    storage.append_bytes("journal/a", b"0123456789")
    with full_disk():
        for name in ("journal/a", "journal/b"):
            with pytest.raises(StorageError, match="too large"):
                storage.append_bytes(name, b"x" * 50)
    assert storage.read_bytes("journal/a") == b"0123456789"
    assert storage.list_files("journal") == ["journal/a"]


def test_many_files_are_read_in_order_whatever_their_sizes(storage, monkeypatch):
    monkeypatch.setattr("common.run.storage._READ_AHEAD_BYTES", 100)
    contents = {f"journal/{n:02}": bytes([n]) * (n * 37 % 150) for n in range(50)}
    for name, content in contents.items():
        storage.write_bytes(name, content)
    sizes = storage.list_sizes("journal")
    assert sizes == {name: len(content) for name, content in contents.items()}
    assert list(storage.read_many(sizes)) == list(contents.values())


def test_files_are_removed_even_if_they_are_gone(storage):
    for name in "abc":
        storage.write_bytes(name, b"x")
    storage.remove("a")
    storage.remove("a")
    storage.remove("a", "b", "z")
    assert storage.list_files("") == ["c"]
    storage.remove()


def test_files_that_come_and_go_do_not_disturb_a_listing(settings):
    storage = RunStorage(settings())
    storage.write_bytes("journal/kept", b"x")
    done = threading.Event()

    def write():
        while not done.is_set():
            storage.write_bytes("journal/changing", b"x" * 100)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all("journal/kept" in storage.list_files("journal") for _ in range(300))
    finally:
        done.set()
        thread.join()


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(settings):
    storage = RunStorage(settings())
    storage.write_bytes("journal", b"a file is in the way")
    with pytest.raises(StorageError, match=r"journal cannot be listed .*check the folder"):
        storage.list_files("journal")


def list_names(folder):
    return [path.name for path in Path(folder).iterdir()]


def test_only_empty_folders_that_were_made_are_removed(settings, tmp_path):
    storage = RunStorage(settings())
    with pytest.raises(ZeroDivisionError), storage.removing_empty_folder("lock"):
        storage.create_bytes("lock/1", b"x")
        storage.remove("lock/1")
        raise ZeroDivisionError
    assert list_names(tmp_path) == []
    with storage.removing_empty_folder("lock"):
        storage.create_bytes("lock/1", b"x")
        storage.write_bytes("labels/a", b"x")
        storage.remove("lock/1")
    assert list_names(storage.path()) == ["labels"]
    (tmp_path / "runs/default/labels/a").unlink()
    with storage.removing_empty_folder("lock"):
        pass
    assert list_names(storage.path()) == ["labels"]
