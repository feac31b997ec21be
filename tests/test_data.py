import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.examples import load_examples
from common.data.testset import TestRows, load_test_rows
from common.errors import InputError
from common.tasks.task import Columns, Task, load_task
from support.labelling import list_examples

TASK = Task(name="tiny", columns=Columns(groups=["lang"]))
SUFFIXES = ["parquet", "jsonl", "csv"]


def rows_of(*texts, **columns):
    return [{"text": text, "reference": text.upper(), **columns} for text in texts]


def write(name, rows):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def texts_of(loaded):
    is_test = isinstance(loaded, TestRows)
    return [row.text for row in (loaded.rows if is_test else list_examples(loaded))]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layout", ["data/{}.{}", "data/{}-00000-of-00001.{}", "data/{}/part-0.{}"])
def test_splits_of_a_folder(settings, suffix, layout):
    write(layout.format("train", suffix), rows_of("one", "two\nlines", 'quo"te, ü'))
    write(layout.format("test", suffix), rows_of("three", lang="en"))
    loaded = settings(DATA__SOURCE="data")
    assert texts_of(load_examples(loaded, TASK)) == ["one", "two\nlines", 'quo"te, ü']
    (row,) = load_test_rows(loaded, TASK).rows
    assert (row.text, row.references, row.groups) == ("three", ["THREE"], {"lang": "en"})


def test_several_files_of_a_split_are_joined(settings):
    write("data/train-0.jsonl", rows_of("one"))
    write("data/train-1.csv", rows_of("two"))
    write("data/validation.csv", rows_of("three"))
    assert texts_of(load_examples(settings(DATA__SOURCE="data"), TASK)) == ["one", "two"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_single_files_as_source_and_test_source(settings, suffix):
    write(f"anything.{suffix}", rows_of("one"))
    write(f"held-out.{suffix}", rows_of("two"))
    loaded = settings(DATA__SOURCE=f"anything.{suffix}", DATA__TEST_SOURCE=f"held-out.{suffix}")
    assert texts_of(load_examples(loaded, TASK)) == ["one"]
    assert texts_of(load_test_rows(loaded, TASK)) == ["two"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("text", ["007", "1.50", "true", "NA", "null", "2020-01-01"])
def test_text_that_looks_like_something_else_stays_text(settings, suffix, text):
    write(f"data.{suffix}", rows_of(text))
    assert texts_of(load_examples(settings(DATA__SOURCE=f"data.{suffix}"), TASK)) == [text]


def test_other_columns_may_hold_anything(settings):
    write("data.jsonl", rows_of("one", meta={"a": 1}) + rows_of("two", meta="b"))
    assert texts_of(load_examples(settings(DATA__SOURCE="data.jsonl"), TASK)) == ["one", "two"]


def test_the_builtin_data_set(settings):
    task = load_task("gec")
    loaded = settings(DATA__SOURCE="builtin", DATA__TRAIN_LIMIT="0")
    examples, test = load_examples(loaded, task), load_test_rows(loaded, task)
    assert len(examples) > 5000
    texts = texts_of(examples) + texts_of(test)
    assert not any(text.startswith("fix grammar") for text in texts)
    assert set(texts_of(test)).isdisjoint(texts_of(examples))
    assert {row.groups["lang"] for row in test.rows} == {"en", "fr", "de", "es"}


def test_a_limit_is_a_stable_sample(settings):
    texts = [f"text {i}" for i in range(100)]
    write("data.jsonl", rows_of(*texts))
    write("reversed.jsonl", rows_of(*reversed(texts)))

    def sample(source, limit):
        loaded = settings(DATA__SOURCE=source, DATA__TRAIN_LIMIT=str(limit))
        return texts_of(load_examples(loaded, TASK))

    few, more = sample("data.jsonl", 10), sample("data.jsonl", 20)
    assert (len(few), len(more)) == (10, 20)
    assert set(few) < set(more)
    assert sample("data.jsonl", 0) == sample("data.jsonl", 1000) == texts
    assert set(few) == set(sample("reversed.jsonl", 10)) != set(texts[:10])


def test_the_test_limit_is_a_sample_too(settings):
    write("data.csv", rows_of("train"))
    write("test.csv", rows_of(*map(str, range(20))))
    loaded = settings(DATA__SOURCE="data.csv", DATA__TEST_SOURCE="test.csv", DATA__TEST_LIMIT="5")
    assert len(load_test_rows(loaded, TASK).rows) == 5


def test_duplicates_are_counted(settings):
    write("data/train.jsonl", rows_of("one", "two", "one", "one"))
    write("data/test.jsonl", rows_of("three", "three"))
    loaded = settings(DATA__SOURCE="data")
    examples, test = load_examples(loaded, TASK), load_test_rows(loaded, TASK)
    assert (texts_of(examples), examples.duplicates) == (["one", "two"], 2)
    assert (texts_of(test), test.duplicates) == (["three"], 1)


@pytest.mark.parametrize(
    ("unseen", "kept"),
    [(["text"], ["b", "c"]), (["text", "reference"], ["c"]), ([], ["a", "b", "c"])],
)
def test_test_rows_that_were_seen_in_train_are_dropped_and_counted(settings, unseen, kept):
    write("data/train.jsonl", [{"text": "a", "reference": "A"}, {"text": "x", "reference": "B"}])
    write("data/test.jsonl", rows_of("a", "b", "c"))
    task = TASK.model_copy(update={"unseen": unseen})
    test = load_test_rows(settings(DATA__SOURCE="data"), task)
    assert (texts_of(test), test.leaked) == (kept, 3 - len(kept))


def test_train_rows_need_no_reference(settings):
    write("data/train.csv", [{"modified": "one"}])
    write("data/test.csv", [{"modified": "two", "sentence": "Two."}])
    loaded = settings(DATA__SOURCE="data")
    assert texts_of(load_examples(loaded, load_task("gec"))) == ["one"]
    assert texts_of(load_test_rows(loaded, load_task("gec"))) == ["two"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_references_may_be_lists(settings, suffix):
    write(f"data/train.{suffix}", rows_of("one"))
    write(f"data/test.{suffix}", [{"text": "two", "reference": ["2", "II"]}])
    (row,) = load_test_rows(settings(DATA__SOURCE="data"), TASK).rows
    assert row.references == ["2", "II"]


def test_a_prefix_is_taken_off_once(settings):
    write("data.csv", rows_of("fix: fix: one", "two fix: "))
    loaded = settings(DATA__SOURCE="data.csv", DATA__TEXT_PREFIX="fix: ")
    assert texts_of(load_examples(loaded, TASK)) == ["fix: one", "two fix: "]


def test_columns_of_the_settings_win_over_the_task(settings):
    write("data/train.csv", [{"in": "one", "out": "1"}])
    write("data/test.csv", [{"in": "two", "out": "2"}])
    loaded = settings(DATA__SOURCE="data", DATA__TEXT_COLUMN="in", DATA__REFERENCE_COLUMN="out")
    assert texts_of(load_examples(loaded, TASK)) == ["one"]
    assert load_test_rows(loaded, TASK).rows[0].references == ["2"]


def assert_refuses(load, *told):
    with pytest.raises(InputError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in told), message


@pytest.mark.parametrize(
    "source",
    [
        "missing.csv",
        "./missing",
        "no/such/folder/here",
        "no-such/data-set",
        "file:///nowhere",
        "nonsense://bucket/data",
    ],
)
def test_a_missing_source_is_named(settings, source):
    loaded = settings(DATA__SOURCE=source)
    assert_refuses(lambda: load_examples(loaded, TASK), "DISTILL_DATA__SOURCE", repr(source))


def test_a_missing_test_source_is_named(settings):
    write("data.csv", rows_of("one"))
    loaded = settings(DATA__SOURCE="data.csv", DATA__TEST_SOURCE="missing.csv")
    assert_refuses(lambda: load_test_rows(loaded, TASK), "DISTILL_DATA__TEST_SOURCE", "missing.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.csv", b""),
        ("data.csv", b"text\n"),
        ("data.jsonl", b""),
        ("data.jsonl", b"rubbish"),
        ("data.jsonl", b'{"text": "one"}\n{"text": '),
        ("data.parquet", b""),
        ("data.parquet", b"rubbish rubbish rubbish"),
    ],
)
def test_an_empty_or_unreadable_file_is_named(settings, name, content):
    Path(name).write_bytes(content)
    loaded = settings(DATA__SOURCE=name)
    assert_refuses(lambda: load_examples(loaded, TASK), name)


def test_an_empty_folder_is_named(settings):
    Path("empty").mkdir()
    loaded = settings(DATA__SOURCE="empty")
    assert_refuses(lambda: load_examples(loaded, TASK), "'empty'", "jsonl")


@pytest.mark.parametrize("source", ["data/train.csv", "data"])
def test_a_missing_test_split_names_the_fix(settings, source):
    write("data/train.csv", rows_of("one"))
    loaded = settings(DATA__SOURCE=source)
    assert_refuses(lambda: load_test_rows(loaded, TASK), repr(source), "DISTILL_DATA__TEST_SOURCE")


def test_a_missing_text_column_names_those_there_are(settings):
    write("data.csv", [{"sentence": "one", "lang": "en"}])
    loaded = settings(DATA__SOURCE="data.csv")
    told = ("data.csv", "'text'", "sentence, lang", "DISTILL_DATA__TEXT_COLUMN")
    assert_refuses(lambda: load_examples(loaded, TASK), *told)


def test_a_missing_reference_column_is_named(settings):
    write("data/train.csv", rows_of("one"))
    write("data/test.csv", [{"text": "two"}])
    loaded = settings(DATA__SOURCE="data")
    told = ("test.csv", "'reference'", "DISTILL_DATA__REFERENCE_COLUMN")
    assert_refuses(lambda: load_test_rows(loaded, TASK), *told)


def test_a_column_of_numbers_is_no_text(settings):
    write("data.parquet", [{"text": 1}])
    loaded = settings(DATA__SOURCE="data.parquet")
    assert_refuses(lambda: load_examples(loaded, TASK), "has 1, not a string", "DATA__TEXT_COLUMN")


def test_classes_may_be_numbers_and_references_of_both_kinds(settings, tmp_path):
    rows = [
        {"text": "one", "reference": 3, "lang": 1},
        {"text": "two", "reference": True, "lang": 2},
    ]
    write("data/train.csv", rows_of("zero"))
    write("data/test.parquet", [rows[0]])
    assert [r.references for r in load_test_rows(settings(DATA__SOURCE="data"), TASK).rows] == [
        ["3"]
    ]
    mixed = [{"text": "a", "reference": "x"}, {"text": "b", "reference": ["y", "z"]}]
    source = write_splits(tmp_path / "mixed", {"train": [{"text": "c"}], "test": mixed})
    found = load_test_rows(settings(DATA__SOURCE=source), PLAIN).rows
    assert sorted(r.references for r in found) == [["x"], ["y", "z"]]


def test_a_test_split_that_was_all_seen_is_an_error(settings):
    write("data/train.csv", rows_of("one", "two"))
    write("data/test.csv", rows_of("two"))
    loaded = settings(DATA__SOURCE="data")
    assert_refuses(lambda: load_test_rows(loaded, TASK), "test", "train")


def write_splits(folder, rows):
    folder.mkdir()
    for split, content in rows.items():
        lines = [json.dumps(row) for row in content]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), "utf-8")
    return str(folder)


PLAIN = Task(name="plain")


def test_rows_of_one_text_share_their_references_and_unusable_rows_are_counted(settings, tmp_path):
    rows = [
        {"text": "a", "reference": "A1 "},
        {"text": "a", "reference": "A2"},
        {"text": "b", "reference": None},
        {"text": " ", "reference": "B"},
        {"text": "c", "reference": "C"},
    ]
    source = write_splits(tmp_path / "data", {"train": [{"text": "x"}], "test": rows})
    test = load_test_rows(settings(DATA__SOURCE=source), PLAIN)
    assert {row.text: row.references for row in test.rows} == {"a": ["A1", "A2"], "c": ["C"]}
    assert (test.duplicates, test.leaked, test.unusable) == (1, 0, 2)


def test_a_test_split_without_any_reference_is_refused(settings, tmp_path):
    rows = {"train": [{"text": "x"}], "test": [{"text": "a", "reference": None}]}
    source = write_splits(tmp_path / "data", rows)
    with pytest.raises(InputError, match="no row with both 'text' and 'reference'"):
        load_test_rows(settings(DATA__SOURCE=source), PLAIN)


def test_the_column_of_the_references_is_not_shown_to_the_teacher(settings, tmp_path):
    source = write_splits(tmp_path / "data", {"train": [{"reference": "x"}]})
    with pytest.raises(InputError, match="would be shown them"):
        load_examples(settings(DATA__SOURCE=source, DATA__TEXT_COLUMN="reference"), PLAIN)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("twice.csv", "text,text\na,b\n", "has 2 columns 'text'"),
        ("empty.jsonl", "", "has no rows"),
        ("list.jsonl", '[{"text": "a"}, 2]', "row 2 should be one JSON object, not 2"),
        ("lines.jsonl", '{"text": "a"}\n2', "line 2 should be one JSON object, not 2"),
        ("lists.jsonl", '{"text": ["a", "b"]}', "not a string"),
        ("number.jsonl", '{"text": 5}', "has 5, not a string"),
    ],
)
def test_odd_files_are_refused_in_one_line(settings, tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=told) as raised:
        load_examples(settings(DATA__SOURCE=str(tmp_path / name)), PLAIN)
    assert "\n" not in str(raised.value)


def test_what_is_no_data_in_a_folder_is_passed_over(settings, tmp_path):
    source = write_splits(tmp_path / "data", {"train": [{"text": "x", "big": 10**30}], "test": []})
    for name in ("._train.csv", "dataset_info.json", "train.txt", "_train.jsonl"):
        (tmp_path / "data" / name).write_text("{")
    (tmp_path / "data/train-2.JSONL").write_text('{"text": "y"}')
    examples = load_examples(settings(DATA__SOURCE=source), PLAIN)
    assert sorted(example.text for example in list_examples(examples)) == ["x", "y"]


def test_categories_and_long_csv_values_are_text(settings, tmp_path):
    table = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "c.parquet")
    assert len(load_examples(settings(DATA__SOURCE=str(tmp_path / "c.parquet")), PLAIN)) == 2
    long = "word " * 500_000
    (tmp_path / "long.csv").write_text(f'text\n"{long}"\n')
    (row,) = list_examples(load_examples(settings(DATA__SOURCE=str(tmp_path / "long.csv")), PLAIN))
    assert row.text == long
