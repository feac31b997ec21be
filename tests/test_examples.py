"""Examples as hashes: which are chosen, which texts are in memory, how the others are read."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import SecretStr

from common.data import examples as module
from common.data.examples import Examples, load_examples, pack_ids, unpack_ids
from common.records import Example, hash_content, hash_text
from common.tasks.task import Columns, Task
from support.labelling import list_examples

TASK = Task(name="plain", columns=Columns(text="text", reference="reference"))
TEXTS = [f"text {n}" for n in range(40)] + ["text 3", " ", "text 7", "é 😀"]
DISTINCT = list(dict.fromkeys(TEXTS))


@pytest.fixture
def few_in_memory(monkeypatch):
    monkeypatch.setattr(module, "_IN_MEMORY", 10)


def write(folder, texts, files=3):
    """The texts in several files, in their order."""
    (folder / "data").mkdir()
    size = -(-len(texts) // files)
    for number in range(files):
        part = texts[number * size : (number + 1) * size]
        lines = "".join(json.dumps({"text": text, "other": 1}) + "\n" for text in part)
        (folder / f"data/train-{number}.jsonl").write_text(lines, "utf-8")
    return str(folder / "data")


def load(settings, tmp_path, texts=TEXTS, limit=0):
    own = settings(DATA__SOURCE=write(tmp_path, texts), DATA__TRAIN_LIMIT=limit)
    return load_examples(own, TASK)


def test_the_first_of_equal_texts_in_the_order_of_the_source(settings, tmp_path, few_in_memory):
    found = load(settings, tmp_path)
    assert found.list_ids() == [hash_text(text) for text in DISTINCT]
    assert found.duplicates == 2
    assert [example.text for example in list_examples(found)] == DISTINCT
    assert found.characters.tolist() == [len(text) for text in DISTINCT]
    assert found.sizes.tolist() == [len(text.encode()) for text in DISTINCT]
    assert found.hash_ids() == hash_content(found.list_ids())


def test_a_limit_takes_the_lowest_hashes(settings, tmp_path, few_in_memory):
    found = load(settings, tmp_path, limit=25)
    lowest = set(sorted(map(hash_text, DISTINCT))[:25])
    assert found.list_ids() == [hash_text(t) for t in DISTINCT if hash_text(t) in lowest]
    assert {example.id for example in list_examples(found)} == lowest


def test_the_lowest_and_the_blank_are_in_memory(settings, tmp_path, few_in_memory):
    found = load(settings, tmp_path)
    lowest = sorted(map(hash_text, DISTINCT))[:10]
    ids = [example.id for example in found.first]
    assert ids == sorted({*lowest, hash_text(" ")})
    assert len(found.rest) == len(found) - len(ids)
    assert found.list_ids().index(hash_text(" ")) == np.flatnonzero(found.mark_blank())


def test_long_texts_take_little_memory(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_IN_MEMORY_CHARACTERS", 20_000)
    texts = [f"{n} {'long ' * 200}" for n in range(60)]
    found = load(settings, tmp_path, texts)
    lowest = sorted(map(hash_text, texts))
    assert [example.id for example in found.first] == lowest[: len(found.first)]
    assert 16 <= len(found.first) <= 20
    assert {example.text for example in list_examples(found)} == set(texts)


def test_a_selection_is_read_alone(settings, tmp_path, few_in_memory):
    found = load(settings, tmp_path)
    chosen = np.arange(len(found)) % 7 == 2
    expected = [text for text, is_chosen in zip(DISTINCT, chosen, strict=True) if is_chosen]
    assert [example.text for example in list_examples(found.select(chosen))] == expected
    none = found.select(np.zeros(len(found), bool))
    assert (len(none), list(none.read()), len(none.rest)) == (0, [], 0)


def test_places_of_ids(settings):
    found = Examples.of(Example(hash_text(text), text) for text in DISTINCT)
    ids = [hash_text("text 5"), hash_text("nowhere"), "0" * 32, "f" * 32]
    assert found.find(pack_ids(ids)).tolist() == [5, -1, -1, -1]
    assert Examples.of([]).find(pack_ids(ids)).tolist() == [-1] * 4


def test_ids_that_end_in_zeros_stay_as_they_are():
    ids = ["00" * 16, "ab" + "00" * 15, "ab" * 16]
    assert unpack_ids(pack_ids(ids)) == ids
    examples = Examples.of(Example(id, id) for id in ids)
    assert examples.find(pack_ids(ids[::-1])).tolist() == [2, 1, 0]
    assert examples.list_ids() == ids
    assert unpack_ids(pack_ids([])) == []


def test_ray_reads_what_is_not_in_memory(settings, tmp_path, few_in_memory):
    """The read tasks of the data set, in this process; no secret is in what Ray sends."""
    import pickle

    from common.labels.lanes.ray.source import ExampleSource
    from common.run.run import Run
    from common.run.storage import RunStorage

    found = load(settings, tmp_path)
    own = found.source.settings
    data = own.data.model_copy(update={"s3_secret": SecretStr("very-secret")})
    own = own.model_copy(update={"data": data})
    packed = Run(own, TASK, RunStorage(own)).pack()
    found = replace(found, source=replace(found.source, settings=own))
    source = ExampleSource(found.rest, packed)
    assert b"very-secret" not in pickle.dumps(source)
    tasks = source.get_read_tasks(2)
    assert not source.supports_distributed_reads
    assert sum(task.metadata.num_rows for task in tasks) == len(found.rest)
    rows = [
        row
        for task in pickle.loads(pickle.dumps([task.read_fn for task in tasks]))
        for table in task()
        for row in table.to_pylist()
    ]
    assert [row["id"] for row in rows] == found.rest.list_ids()
    assert all(hash_text(row["text"]) == row["id"] for row in rows)
