import threading

import pytest

from common.errors import InputError
from common.records import hash_content
from common.run.manifest import (
    is_done,
    read_manifest,
    remove_manifest,
    require_manifest,
    write_manifest,
)
from common.run.steps import ADAPTER, LABELS
from common.run.storage import RunStorage

FINGERPRINT = {"examples": "3 of abc", "teacher.model": "big", "seed": 0}


def test_a_step_without_manifest_is_not_done(storage):
    storage.write_bytes("labels/part-00000.parquet", b"half")
    assert read_manifest(storage, LABELS) is None
    assert not is_done(storage, LABELS, FINGERPRINT)


def test_a_written_manifest_marks_the_step_as_done(storage):
    written = write_manifest(storage, LABELS, FINGERPRINT, counts={"ok": 3}, files=["a"])
    assert is_done(storage, LABELS, FINGERPRINT)
    assert read_manifest(storage, LABELS) == require_manifest(storage, LABELS) == written
    assert written.counts == {"ok": 3}
    assert not is_done(storage, ADAPTER, FINGERPRINT)


def test_the_manifest_of_version_0_1_counts_until_there_is_another(storage):
    old = write_manifest(storage, LABELS, FINGERPRINT, counts={"ok": 3})
    storage.write_json(LABELS.old_manifest, old.to_json())
    storage.remove(LABELS.manifest)
    assert read_manifest(storage, LABELS) == old
    new = write_manifest(storage, LABELS, FINGERPRINT, counts={"ok": 4})
    assert read_manifest(storage, LABELS) == new
    remove_manifest(storage, LABELS)
    assert read_manifest(storage, LABELS) is None
    assert not is_done(storage, LABELS, FINGERPRINT)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (FINGERPRINT | {"seed": 1}, "seed was 0 and is 1;"),
        (FINGERPRINT | {"more": "x"}, "more was None and is 'x';"),
        ({"seed": 0, "teacher.model": "big"}, "examples was '3 of abc' and is None;"),
    ],
)
def test_another_fingerprint_is_an_error_that_names_what_changed(storage, now, told):
    write_manifest(storage, LABELS, FINGERPRINT)
    with pytest.raises(InputError, match=told) as caught:
        is_done(storage, LABELS, now)
    message = str(caught.value)
    assert message.count(" was ") == 2  # the one change, and "was made from something else"
    assert f"{storage.url}/labels" in message
    assert "DISTILL_RUN" in message
    assert "\n" not in message


def test_a_fingerprint_that_json_changes_in_kind_only_is_the_same(storage):
    write_manifest(storage, LABELS, {"teacher": ("url", "model"), "rate": 1.0})
    assert is_done(storage, LABELS, {"teacher": ["url", "model"], "rate": 1})


def test_a_step_that_is_required_names_the_command(storage):
    with pytest.raises(InputError, match=r"labels.*python -m jobs\.label") as caught:
        require_manifest(storage, LABELS)
    assert storage.url in str(caught.value)


def test_a_step_is_waited_for(storage, settings, monkeypatch):
    monkeypatch.setattr("common.run.manifest._POLL_SECONDS", 0.01)
    root = storage.url.removesuffix("/default")
    waiting = RunStorage(settings(STORAGE__ROOT=root, STORAGE__WAIT_SECONDS=60))
    later = threading.Timer(0.1, write_manifest, [storage, LABELS, {"a": 1}])
    later.start()
    assert require_manifest(waiting, LABELS).fingerprint == {"a": 1}
    later.join()
    impatient = RunStorage(settings(STORAGE__ROOT=root, STORAGE__WAIT_SECONDS=0.05))
    with pytest.raises(InputError, match="adapter is not finished"):
        require_manifest(impatient, ADAPTER)


def test_the_hash_depends_on_content_and_not_on_order():
    assert hash_content({"a": 1, "b": ["ü"]}) == hash_content({"b": ["ü"], "a": 1})
    assert len({hash_content(c) for c in ({"a": 1}, {"a": 2}, {"a": "1"}, ["a", 1], "a", "")}) == 6
