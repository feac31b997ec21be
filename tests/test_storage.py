import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from common.data import load_examples, load_test_rows
from common.errors import InputError
from common.storage import RunStorage
from common.tasks import load_task

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
    with full_disk(), pytest.raises(OSError, match="too large"):
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
    assert [row.text for row in load_examples(loaded, task).rows] == ["train"]
    assert [row.references for row in load_test_rows(loaded, task).rows] == [["TEST"]]


def test_examples_come_from_a_file_on_s3(bucket, settings, tmp_path):
    (tmp_path / "tiny.toml").write_text(TASK_TOML)
    put(f"{bucket}/data.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    loaded = settings(DATA__SOURCE=f"{bucket}/data.jsonl")
    assert [row.text for row in load_examples(loaded, load_task("./tiny.toml")).rows] == [
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
    storage.write_bytes("labels/manifest.json", b"{")
    storage.write_bytes("labels/part.parquet", b"PAR1 no parquet PAR1")
    for read, name in (
        (storage.read_json, "labels/manifest.json"),
        (storage.read_table, "labels/part.parquet"),
        (storage.read_table, "labels/missing.parquet"),
    ):
        with pytest.raises(InputError, match=f"{name} is damaged or missing"):
            read(name)


def test_a_root_that_is_a_file_is_refused_before_any_call(settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is no folder"):
        RunStorage(settings(STORAGE__ROOT=str(tmp_path / "file/runs")))
