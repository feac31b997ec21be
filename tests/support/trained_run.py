"""A run whose built-in student is trained on labels that are given."""

import json
from collections.abc import Callable
from pathlib import Path

from common.records import LabelRow, hash_text, make_label_table
from common.run.manifest import write_manifest
from common.run.steps import LABELS
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.task import load_task
from common.teacher.requests import fingerprint_teacher
from jobs import train


def make_trained_run(
    settings: Callable[..., Settings], folder: Path, test_rows: int = 20, **variables: object
) -> tuple[Settings, RunStorage]:
    """Its settings and storage; 40 examples and test rows are in files, the teacher is built in.

    `variables` are more settings.
    """
    pairs = [(f"the {i} dog sleep", f"The {i} dogs sleep.") for i in range(40 + test_rows)]
    data = folder / "data"
    data.mkdir()
    for split, chosen in (("train", pairs[:40]), ("test", pairs[40:])):
        lines = [json.dumps({"modified": t, "sentence": r, "lang": "en"}) for t, r in chosen]
        (data / f"{split}.jsonl").write_text("\n".join(lines))
    given = {
        "DATA__SOURCE": data,
        "STUDENT__MODEL": "builtin",
        "TEACHER__BASE_URL": "builtin",
        "TRAIN__EPOCHS": 2,
        "TRAIN__MERGE": "true",
        "EVALUATE__MAX_NEW_TOKENS": 24,
    }
    own = settings(**given | variables)
    storage, task = RunStorage(own), load_task("gec")
    rows = [LabelRow(hash_text(t), t, "ok", r) for t, r in pairs[:40]]
    name = "labels/part-00000.parquet"
    storage.write_table(name, make_label_table(rows))
    write_manifest(storage, LABELS, fingerprint_teacher(own, task), files=[name], counts={})
    train.main(own)
    return own, storage
