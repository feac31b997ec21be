"""Damaged files of a run: what is whole is used, all else is told in one line with the fix.

support/run_of_version_0_1 is a finished run of an older version.
"""

import contextlib
import json
import logging
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from common.evaluation.predictions import read_predictions
from common.records import LABEL_SCHEMA, LabelRow, hash_text, make_label_table
from common.run.manifest import read_manifest
from common.run.steps import LABELS
from common.run.storage import RunStorage
from common.teacher.journal import decode_line, encode_line, iterate_journal
from common.teacher.replies import Reply
from common.teacher.sealed import Sealed, list_sealed, write_sealed
from jobs import evaluate, label, report
from support.damage import DAMAGES, JUNK, damage_json, replace_at
from test_older_runs import MADE, SETTINGS

REPLY = Reply("key", 200, "{}", 1, 0.1, 9, 9, None, "", hash_text("text"))


@pytest.fixture
def old(settings, tmp_path):
    shutil.copytree(MADE, tmp_path / "runs/old")
    return settings(**SETTINGS)


def check_message(error: InputError, *names: str) -> None:
    message = str(error)
    assert all(name in message for name in names), message
    assert message.isprintable(), message
    assert len(message) < 900


def try_job(main, own, name):
    """Whether the job takes the file; otherwise checks its message."""
    try:
        with contextlib.redirect_stdout(None):
            main(own)
    except InputError as error:
        check_message(error, name)
        return False
    return True


@pytest.mark.parametrize(
    "name",
    ["metrics.json", *(f"{step}/manifest.json" for step in ("labels", "adapter", "predictions"))],
)
def test_the_report_takes_or_refuses_json_with_any_odd_value(old, name):
    """No word of what a program of another version may write ends in a traceback."""
    file = Path(RunStorage(old).path(name))
    content = json.loads(file.read_bytes())
    changes = [(damage, change(file.read_bytes())) for damage, change in DAMAGES.items()]
    for value in [*JUNK, ...]:
        for key in content:
            changes.append((f"{key}={value!r}", json.dumps(replace_at(content, (key,), value))))
    changes += damage_json(content, seed=0, count=60)
    for _, changed in changes[:: 2 if name == "metrics.json" else 5]:
        file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        try_job(report.main, old, "runs/old")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("counts",), [], r"counts: Input should be an object"),
        (("files",), "x", r"files: Input should be a valid array"),
        (("summary", "seconds"), "long", r"summary.seconds: Input should be a valid number"),
        (("finished_at",), "\ud800", "unexpected end of hex escape"),
        (("fingerprint",), ..., "fingerprint: Field required"),
    ],
)
def test_a_manifest_of_another_shape_names_the_field(old, path, value, told):
    storage = RunStorage(old)
    content = json.loads(storage.read_bytes("labels/manifest.json"))
    changed = json.dumps(replace_at(content, path, value)).encode()
    storage.write_bytes("labels/manifest.json", changed)
    with pytest.raises(InputError, match=rf"labels/manifest.json is damaged.*{told}.*delete") as e:
        read_manifest(storage, LABELS)
    check_message(e.value)


def make_table(count=300):
    texts = [f"text {i}" for i in range(count)]
    return make_label_table([LabelRow(hash_text(t), t, "ok", t.upper()) for t in texts])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_the_same_or_refused(storage, damage):
    name, whole = "labels/part-0.parquet", make_table()
    storage.write_table(name, whole)
    storage.write_bytes(name, DAMAGES[damage](storage.read_bytes(name)))
    for read in (
        lambda: storage.read_table(name, LABEL_SCHEMA),
        lambda: storage.read_columns(name, LABEL_SCHEMA.names, LABEL_SCHEMA),
    ):
        try:
            assert read().equals(whole)
        except InputError as error:
            check_message(error, name, "is damaged", "delete the folder of its step")


@pytest.mark.parametrize("place", [i / 40 for i in range(40)])
def test_a_single_bit_changes_no_label_unseen(settings, place):
    storage, whole = RunStorage(settings()), make_table(2000)
    storage.write_table("a/b.parquet", whole)
    content = bytearray(storage.read_bytes("a/b.parquet"))
    content[int(len(content) * place)] ^= 0x10
    storage.write_bytes("a/b.parquet", bytes(content))
    try:
        assert storage.read_table("a/b.parquet", LABEL_SCHEMA).equals(whole)
    except InputError as error:
        check_message(error, "a/b.parquet is damaged")


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("id", None, "it has no column 'id'"),
        ("status", None, "it has no column 'status'"),
        ("id", ["zz"] * 3, "its column 'id' holds more than ids"),
        ("id", [None, *map(hash_text, "ab")], "its column 'id' holds more than ids"),
        ("label", [1, 2, 3], "its column 'label' holds int64"),
        ("text", [["a"]] * 3, "its column 'text' holds list"),
    ],
)
def test_a_table_of_another_shape_names_the_column(settings, column, values, told):
    storage, table = RunStorage(settings()), make_table(3)
    place = table.column_names.index(column)
    table = table.remove_column(place)
    if values is not None:
        table = table.add_column(place, column, pa.array(values))
    storage.write_table("labels/a.parquet", table)
    with pytest.raises(InputError, match=f"labels/a.parquet is damaged .*{told}"):
        storage.read_columns("labels/a.parquet", ["id", "text", "status", "label"], LABEL_SCHEMA)


def test_the_label_job_names_a_damaged_part_and_its_fix(old, monkeypatch):
    """And the fix works: all labels are there again, and nothing is paid for."""
    storage = RunStorage(old)
    monkeypatch.setattr(label, "make_lane", lambda run: pytest.fail("asked again"))
    Path(storage.path("labels/manifest.json")).unlink()
    label.main(old)  # makes a part of this version
    (part,) = [n for n in storage.list_files("labels") if n.endswith(".parquet")]
    (Path(storage.path("labels")) / "_manifest.json").unlink()
    content = storage.read_bytes(part)
    for damage in ("empty", "cut in half", "without its end", "noise"):
        storage.write_bytes(part, DAMAGES[damage](content))
        with pytest.raises(InputError, match="delete the folder of its step and run") as raised:
            label.main(old)
        check_message(raised.value, part)
    shutil.rmtree(storage.path("labels"))
    label.main(old)
    assert read_manifest(storage, LABELS).counts == {"ok": 80, "failed": 0, "filtered": 0}


# The journal

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
FIELDS = list(vars(REPLY))


def is_taken(line: bytes) -> bool:
    """Whether a line is a reply, which then can be used as one."""
    reply = decode_line(line)
    if reply is None:
        return False
    assert hash(reply) is not None
    assert bytes.fromhex(reply.example_id) or not reply.example_id
    assert reply.key.rpartition(" of ") and reply.body.lstrip() is not None
    assert decode_line(encode_line(reply)) == reply
    return True


@pytest.mark.parametrize("field", FIELDS)
def test_a_line_of_the_journal_with_an_odd_value_is_passed_over(field):
    for value in JUNK:
        is_taken(json.dumps(vars(REPLY) | {field: value}).encode())
    kind = type(vars(REPLY)[field])
    assert not is_taken(json.dumps(vars(REPLY) | {field: [kind.__name__]}).encode())


@given(st.sampled_from(FIELDS), json_values)
def test_a_line_with_any_value_is_a_reply_or_none(field, value):
    is_taken(json.dumps(vars(REPLY) | {field: value}).encode())


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_reply_or_none(line):
    is_taken(line)


def test_other_lines_of_a_damaged_journal_are_used(storage):
    lines = [b"[" * 100_000 + b"\n", b"\0" * 500 + b"\n", encode_line(REPLY), b"\xff\xfe\n", b"{}"]
    storage.write_bytes("journal/a.jsonl", b"".join(lines))
    assert list(iterate_journal(storage)) == [REPLY]


def write_seal(storage):
    from common.records import Example

    write_sealed(storage, "a", [Sealed(Example(hash_text("text"), "text"), [REPLY])], None, 9)
    return "journal/sealed-a.parquet"


def test_damaged_sealed_replies_are_not_thrown_away_with_the_others(storage):
    name = write_seal(storage)
    storage.write_bytes(name, storage.read_bytes(name)[:-20])
    with pytest.raises(InputError, match=r"delete that file, whose replies are then paid for"):
        list_sealed(storage)


@pytest.mark.parametrize("told", [b"", b"{", b"null", b"[]", b"\xff", b'{"usd": "x", "by": 1}'])
def test_sealed_replies_without_a_cost_are_summed_up_again(storage, told):
    name = write_seal(storage)
    table = storage.read_table(name).replace_schema_metadata({b"distill.cost": told})
    storage.write_table(name, table)
    (file,) = list_sealed(storage)
    assert file.find_cost(None, 9) == 0


# Predictions


@pytest.mark.parametrize("told", [b"", b"{", b"[]", b"\xff"])
def test_predictions_that_do_not_say_of_what_are_of_other_inputs(old, told):
    storage, name = RunStorage(old), "predictions/teacher.parquet"
    table = storage.read_table(name).replace_schema_metadata({b"distill.fingerprint": told})
    storage.write_table(name, table)
    assert read_predictions(storage, "teacher", {}) is None


def test_predictions_that_lack_rows_are_made_again(old, monkeypatch, caplog):
    storage, name = RunStorage(old), "predictions/teacher.parquet"
    storage.write_table(name, storage.read_table(name).slice(1))
    storage.remove("predictions/manifest.json")
    asked = []

    def ask(runner, system, rows):
        asked.append(system.key)
        raise InputError("asked")

    monkeypatch.setattr(evaluate.SystemRunner, "ask", ask)
    with caplog.at_level(logging.ERROR), pytest.raises(InputError, match=r"^asked$"):
        evaluate.main(old)
    assert asked == ["teacher"]
