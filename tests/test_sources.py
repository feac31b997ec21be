"""Sources as people have them: splits, formats, compressions, stores."""

import bz2
import gzip
import json
import logging
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.examples import load_examples
from common.data.hub import load_from_hub
from common.data.place import Place
from common.data.testset import load_test_rows
from common.errors import InputError, SettingsError
from common.tasks.task import Columns, Task
from common.urls import tidy_location
from support.labelling import list_examples

PLAIN = Task(name="plain")


def lines_of(*texts):
    return "".join(f"{json.dumps({'text': t, 'reference': t.upper()})}\n" for t in texts).encode()


def write(folder, **files):
    """Writes files; __ in a name stands for a dot, ___ for a slash."""
    for name, content in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def label_texts_of(settings, source, **values):
    loaded = load_examples(settings(DATA__SOURCE=source, **values), PLAIN)
    return sorted(row.text for row in list_examples(loaded))


def test_all_files_that_can_be_read_are_read(settings, tmp_path):
    source = write(
        tmp_path,
        train_0__jsonl=lines_of("a", "b"),
        train_1__jsonl__gz=gzip.compress(lines_of("c")),
        train_2__ndjson=lines_of("d"),
        train_3__tsv=b"text\treference\ne, f\tE\n",
        train_4__jsonl__zst=pa.compress(lines_of("g"), "zstd", asbytes=True),
        train_5__csv__bz2=bz2.compress(b'text\n"h, i"\n'),
        train_6__json=json.dumps([{"text": "j"}, {"text": "k"}], indent=1).encode(),
    )
    table = pa.table({"text": pa.array([b"l", "é".encode()], pa.binary()), "n": [1, 2]})
    pq.write_table(table, tmp_path / "train_7.parquet")
    with pa.ipc.new_stream(str(tmp_path / "train_8.arrow"), table.schema) as stream:
        stream.write_table(pa.table({"text": pa.array([b"m"], pa.binary()), "n": [3]}))
    with pa.ipc.new_file(str(tmp_path / "train_9.arrow"), table.schema) as file:
        file.write_table(pa.table({"text": pa.array([b"n"], pa.binary()), "n": [4]}))
    expected = ["a", "b", "c", "d", "e, f", "g", "h, i", "j", "k", "l", "m", "n", "é"]
    assert label_texts_of(settings, source) == sorted(expected)


def test_what_is_left_out_is_named(settings, tmp_path, caplog):
    source = write(
        tmp_path,
        train__jsonl=lines_of("a"),
        train__xlsx=b"?",
        README__md=b"# About",
        LICENSE__txt=b"free",
        other__jsonl=lines_of("b"),
    )
    with caplog.at_level(logging.WARNING):
        assert label_texts_of(settings, source) == ["a"]
    assert "left out LICENSE.txt, README.md, train.xlsx: they are not of a format" in caplog.text
    assert "left out other.jsonl: their names tell no split" in caplog.text


def test_lines_of_text_are_texts_where_there_are_no_tables(settings, tmp_path):
    source = write(
        tmp_path, a__txt=b"\xef\xbb\xbfone\r\ntwo\n\n", b__txt__gz=gzip.compress(b"three")
    )
    assert label_texts_of(settings, source) == ["one", "three", "two"]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("my_train__jsonl", "my_test__jsonl"),
        ("split=train___0__jsonl", "split=test___0__jsonl"),
        ("training__jsonl", "testing__jsonl"),
        ("data-Train-00__jsonl", "data-Evaluation-00__jsonl"),
        ("train___test-drive__jsonl", "eval___a__jsonl"),
        ("x.train__jsonl", "x.test__jsonl"),
        ("train___part-0__jsonl", "test__jsonl"),
    ],
)
def test_splits_are_found_as_the_package_datasets_finds_them(settings, tmp_path, train, test):
    more = {"validation__jsonl": lines_of("v")} if "___" not in train else {}
    source = write(tmp_path, **{train: lines_of("a"), test: lines_of("t")}, **more)
    assert label_texts_of(settings, source) == ["a"]
    (row,) = load_test_rows(settings(DATA__SOURCE=source), PLAIN).rows
    assert row.text == "t"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["mytrain__jsonl", "mytest__jsonl"], "cannot be told apart: mytest.jsonl"),
        (["a__jsonl", "evalset__jsonl"], "cannot be told apart: evalset.jsonl"),
        (["train__jsonl", "train_test__jsonl"], "of several splits: train_test.jsonl"),
        (["my_test__jsonl", "a__jsonl"], "no file whose name says that it is of the train split"),
    ],
)
def test_test_rows_that_may_be_among_the_examples_are_refused(settings, tmp_path, names, told):
    source = write(tmp_path, **dict.fromkeys(names, lines_of("a")))
    with pytest.raises(InputError, match=told):
        label_texts_of(settings, source)


def test_a_single_file_may_have_any_name(settings, tmp_path):
    write(tmp_path, my_test__jsonl=lines_of("a"))
    assert label_texts_of(settings, str(tmp_path / "my_test.jsonl")) == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a__jsonl", lines_of(*"abcdefghij") + b'{"text": "k"\n', r"a\.jsonl .*line 11, column "),
        ("a__jsonl", lines_of("a") + b'{"text": "\xff"}\n', r"a\.jsonl .*line 2: "),
        ("a__json", b'[\n{"text": "a"},\n{"text": }\n]', r"a\.json .*line 3, column 10"),
        (
            "a__jsonl__gz",
            gzip.compress(lines_of("a" * 999), mtime=0)[:-9],
            r"a\.jsonl\.gz .*[Tt]runcated",
        ),
        ("a__jsonl", b'{"text": "a"}\n{"text": 1}\n', "holds values of several kinds"),
        ("a__csv", b"text\n\xff\n", r"a\.csv .*UTF"),
        ("a__parquet__gz", b"", "holds no parquet"),
    ],
)
def test_the_place_of_damage_is_named(settings, tmp_path, name, content, told):
    source = write(tmp_path, **{name: content})
    with pytest.raises(InputError, match=told) as raised:
        label_texts_of(settings, source)
    assert "\n" not in str(raised.value)


def test_bytes_that_are_no_text_are_refused(settings, tmp_path):
    pq.write_table(pa.table({"text": pa.array([b"\xff\xfe"])}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: .* bytes that are not text"):
        label_texts_of(settings, str(tmp_path))


@pytest.mark.parametrize("other", ["one  two ", "one\r\ntwo", "one\u00a0two"])
def test_test_rows_that_differ_in_spaces_alone_were_seen(settings, tmp_path, other):
    files = {"train__jsonl": lines_of("one two", "Cafe\u0301")}
    source = write(tmp_path, **files, test__jsonl=lines_of(other, "Caf\u00e9", "new"))
    test = load_test_rows(settings(DATA__SOURCE=source), PLAIN)
    assert ([row.text for row in test.rows], test.leaked) == (["new"], 2)


@pytest.mark.parametrize(
    ("given", "tidy"),
    [
        ("s3://bucket//some///prefix", "s3://bucket/some/prefix"),
        ("file:///data//x", "file:///data//x"),
        ("org/name", "org/name"),
        ("~/x", str(Path.home() / "x")),
    ],
)
def test_locations_are_tidied(given, tidy):
    assert tidy_location(given) == tidy


@pytest.mark.parametrize("name", ["STORAGE__ROOT", "DATA__SOURCE", "STUDENT__MODEL"])
def test_a_mistyped_url_names_the_fix(settings, name):
    with pytest.raises(SettingsError, match="write s3://bucket/x"):
        settings(**{name: "s3:/bucket/x"})


def test_a_root_with_two_slashes_is_one(settings, bucket):
    assert settings(STORAGE__ROOT=f"{bucket}//a//b").storage.root == f"{bucket}/a/b"


@pytest.mark.parametrize(
    "own", [{"DATA__S3_ANONYMOUS": "true"}, {"DATA__S3_KEY": "k", "DATA__S3_SECRET": "s"}]
)
def test_the_examples_may_be_in_a_store_with_other_keys(settings, bucket, monkeypatch, own):
    with fsspec.open(f"{bucket}/data/train.jsonl", "wb") as file:
        file.write(lines_of("a"))
    store = fsspec.filesystem("s3")
    for path in (bucket, f"{bucket}/data/train.jsonl"):
        store.chmod(path, "public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    given = settings(DATA__SOURCE=f"{bucket}//data", **own)
    assert [row.text for row in list_examples(load_examples(given, PLAIN))] == ["a"]
    assert "k" not in str(given.describe(["data"]).get("s3_secret", ""))


CARD = """---
configs:
- config_name: first
  data_files: [{split: train, path: one.jsonl}]
- config_name: second
  data_files: [{split: train, path: two.jsonl}]
---
"""


def test_a_configuration_can_be_chosen_and_is_asked_for(settings, tmp_path):
    files = {"one__jsonl": lines_of("one"), "two__jsonl": lines_of("two")}
    url = write(tmp_path / "hub", README__md=CARD.encode(), **files)

    def load(**values):
        parts = load_from_hub(Place("V", url, False), settings(**values).data, "train", ["text"])
        return [text for _, table in parts for text in table["text"].to_pylist()]

    with pytest.raises(InputError, match=r"set DISTILL_DATA__CONFIG: .*'first', 'second'"):
        load()
    assert load(DATA__CONFIG="second") == ["two"]
    with pytest.raises(InputError, match=r"third.*first.*second"):
        load(DATA__CONFIG="third")


@pytest.mark.parametrize(
    "odd",
    [
        {"text": "2020-01-01", "meta": {"a": 1}},
        {"text": "007", "meta": "b", "more": [1]},
        {"text": None},
        {"text": 'a\nb\u2028c\\ " 😀'},
        {"text": "x" * (9 << 20)},
        {"other": 1},
    ],
)
def test_json_is_the_same_however_it_is_read(settings, tmp_path, odd):
    """An odd row among plain ones, late enough that pyarrow has begun to read."""
    rows = [{"text": f"text {i}", "meta": {"a": i}} for i in range(300)]
    rows.insert(250, odd)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(text, "utf-8")
    examples = load_examples(settings(DATA__SOURCE=str(tmp_path), DATA__TRAIN_LIMIT=0), PLAIN)
    assert [row.text for row in list_examples(examples)] == [row.get("text") or "" for row in rows]


def test_a_late_row_of_another_kind_names_its_column(settings, tmp_path):
    lines = [json.dumps({"text": f"text {i}"}) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"text": 5}']), "utf-8")
    with pytest.raises(InputError, match=r"a\.jsonl: the column 'text' holds values of several"):
        load_examples(settings(DATA__SOURCE=str(tmp_path)), PLAIN)


def test_a_late_byte_that_is_no_text_names_its_line(settings, tmp_path):
    lines = [json.dumps({"text": f"text {i}"}).encode() for i in range(300)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "\xff"}']))
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read as JSON: line 301"):
        load_examples(settings(DATA__SOURCE=str(tmp_path)), PLAIN)


@pytest.mark.parametrize("name", ["jsonl", "arrow"])
def test_rows_may_be_grouped_by_their_references(settings, tmp_path, name):
    write(tmp_path, train__jsonl=lines_of("x"), test__jsonl=lines_of("a"))
    if name == "arrow":
        (tmp_path / "test.jsonl").unlink()
        table = pa.table({"text": ["a"], "reference": ["A"]})
        with pa.ipc.new_stream(str(tmp_path / "test.arrow"), table.schema) as stream:
            stream.write_table(table)
    task = PLAIN.model_copy(update={"columns": Columns(groups=["reference"])})
    (row,) = load_test_rows(settings(DATA__SOURCE=str(tmp_path)), task).rows
    assert (row.references, row.groups) == (["A"], {"reference": "A"})
