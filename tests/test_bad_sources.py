"""Every format of a source, damaged: it is read, or refused in one line that names the file."""

import bz2
import gzip
import io
import json
import logging
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from common.data.examples import load_examples
from common.errors import InputError
from common.tasks.task import Task
from support.damage import DAMAGES
from support.labelling import list_examples

TASK = Task(name="t")
ROWS = [{"text": f"text {i} é", "reference": f"REF {i}"} for i in range(300)]
TABLE = pa.Table.from_pylist(ROWS)
LINES = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS).encode()
CSV = ("text,reference\n" + "".join(f'"text {i} é",REF {i}\n' for i in range(300))).encode()


def to_parquet(table, **options):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def to_arrow(table, make=pa.ipc.new_stream):
    buffer = io.BytesIO()
    with make(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return buffer.getvalue()


def compress(content, kind):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, kind) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


SOURCES = {
    "train.jsonl": LINES,
    "train.json": json.dumps(ROWS, indent=1).encode(),
    "train.csv": CSV,
    "train.tsv": CSV.replace(b",", b"\t"),
    "train.txt": "".join(f"text {i} é\n" for i in range(300)).encode(),
    "train.parquet": to_parquet(TABLE),
    "checked.parquet": to_parquet(TABLE, write_page_checksum=True, compression="none"),
    "train.arrow": to_arrow(TABLE),
    "file.arrow": to_arrow(TABLE, pa.ipc.new_file),
    "train.jsonl.gz": gzip.compress(LINES, mtime=0),
    "train.csv.bz2": bz2.compress(CSV),
    "train.jsonl.zst": compress(LINES, "zstd"),
    "train.txt.lz4": compress(LINES, "lz4"),
}
CUT = ("cut in half", "without its end", "its first bytes")
MAY_BE_CUT = ("train.jsonl", "train.csv", "train.tsv", "train.txt")
"""Where a cut at the end of a row is not seen."""


def read(settings, path):
    examples = load_examples(settings(DATA__SOURCE=str(path), DATA__TRAIN_LIMIT=0), TASK)
    return len(list_examples(examples))


def refuse(settings, path, told=""):
    with pytest.raises(InputError, match=told) as raised:
        read(settings, path)
    message = str(raised.value)
    assert message.isprintable(), message
    assert len(message) < 800
    return message


@pytest.mark.parametrize("name", SOURCES)
def test_a_damaged_source_is_read_or_refused(settings, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(SOURCES[name])
    assert read(settings, path) == 300
    for damage, change in DAMAGES.items():
        path.write_bytes(change(SOURCES[name]))
        try:
            count = read(settings, path)
        except InputError as error:
            assert name in str(error)
            assert str(error).isprintable()
            assert len(str(error)) < 800
        else:
            assert damage not in CUT or name in MAY_BE_CUT, (damage, count)


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_strings_that_are_not_utf8_are_refused(settings, tmp_path, name):
    """The formats' readers take them."""
    offsets, content = pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
    column = pa.Array.from_buffers(pa.string(), 1, [None, offsets, content])
    table = pa.table({"text": column})
    (tmp_path / name).write_bytes((to_parquet if "parquet" in name else to_arrow)(table))
    refuse(settings, tmp_path / name, rf"{name} cannot be read as \w+: .*UTF")


def test_a_page_with_a_wrong_checksum_is_refused(settings, tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(SOURCES["checked.parquet"].replace(b"text 7 ", b"text 8 "))
    refuse(settings, path, "CRC checksum")


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet", "train.txt"])
def test_a_pointer_of_git_lfs_names_the_fix(settings, tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGES["a pointer"](b""))
    refuse(settings, tmp_path / name, "run git lfs pull")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "a", "more": %s}\n' % ("[" * 100_000), "line 1: maximum recursion depth"),
        ('{"text": "a", "more": %s}\n' % ("1" * 10_000), "line 1: Exceeds the limit"),
        ('{"text": "half of \\ud83d"}\n', "lone surrogate"),
        ('{"text": ["%s"]}\n' % ("a" * 10_000), r"the text column 'text' has \['aaa.*DATA__TEXT"),
        ("[1, 2]", "row 1 should be one JSON object"),
        ('{\n "text": "a"\n}', "line 1, column 2: .*an object a line, or be one array"),
        ('{"text": "a"}, \n' * 3, "line 1, column 14: Extra data"),
    ],
)
def test_odd_json_is_refused_by_its_line(settings, tmp_path, content, told):
    (tmp_path / "train.jsonl").write_text(content)
    refuse(settings, tmp_path / "train.jsonl", told)


def test_a_pipe_or_a_device_is_not_waited_for(settings, tmp_path):
    os.mkfifo(tmp_path / "train.jsonl")
    for path in (tmp_path, tmp_path / "train.jsonl", "/dev/null"):
        refuse(settings, path, "pipes or devices")


def test_a_link_to_nowhere_is_refused(settings, tmp_path):
    (tmp_path / "train.jsonl").symlink_to("nowhere")
    refuse(settings, tmp_path, "No such file")


def test_missing_files_of_several_are_named(settings, tmp_path, caplog):
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    with caplog.at_level(logging.WARNING):
        assert read(settings, tmp_path / "saved") == 300
        assert not caplog.text
        (tmp_path / "saved/data-00001-of-00003.arrow").unlink()
        assert read(settings, tmp_path / "saved") == 200
    assert "has only 2 of the 3 files data-…-of-00003.arrow" in caplog.text
