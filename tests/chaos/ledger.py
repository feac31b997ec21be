"""What has to hold of a label job's rows and replies, whatever has happened."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from common.environment import load_settings
from common.labels.resume import make_keys
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.task import load_task
from common.teacher.requests import make_request
from tests.chaos.teachers import expect_status
from tests.support.labelling import read_answers


def write_examples(path: Path, rows: int) -> list[str]:
    """Writes texts with a number each; returns them."""
    texts = [f"This is the sentence with the number {i} in the middle of it." for i in range(rows)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    return texts


def load_own_settings(variables: dict[str, object]) -> Settings:
    """The settings of a job; variables are named without DISTILL_."""
    given = {f"DISTILL_{name}": str(value) for name, value in variables.items()}
    with mock.patch.dict(os.environ, given):
        return load_settings()


class Ledger:
    """The replies of one run that were durable once; `problems` is what does not hold."""

    def __init__(
        self, settings: Settings, texts: list[str], storage: RunStorage | None = None
    ) -> None:
        self.problems: list[str] = []
        self._storage, self._texts = storage or RunStorage(settings), texts
        self._durable: dict[str, str] = {}
        task = load_task(settings.task)
        bodies = {text: make_request(settings.teacher, task, text) for text in texts}
        self._keys = {text: make_keys(settings, body)[0] for text, body in bodies.items()}

    def note(self) -> None:
        """Checks that every answer that was durable is still the one that counts."""
        now = {key: reply.body for key, reply in read_answers(self._storage).items()}
        for key, body in self._durable.items():
            if now.get(key) != body:
                self.problems.append(f"a durable answer changed: {body} is {now.get(key)}")
        self._durable = now
        self._read_rows()  # raises where a part is cut off

    def check(self) -> None:
        """Checks that each input has its row, of the answer that counts."""
        rows = self._read_rows()
        if sorted(row["text"] for row in rows) != sorted(self._texts):
            self.problems.append(f"{len(rows)} rows for {len(self._texts)} inputs, not one each")
        if len({row["id"] for row in rows}) != len(rows):
            self.problems.append("an id stands in two rows")
        expected = Counter(map(expect_status, self._texts))
        found = Counter(row["status"] for row in rows)
        if found != expected:
            errors = Counter(row["error"] for row in rows)
            self.problems.append(f"rows by status: {found}, expected {expected}; {errors}")
        for row in rows:
            reply = self._durable.get(self._keys[row["text"]])
            if row["status"] == "ok" and (reply is None or row["label"] not in reply):
                self.problems.append(f"the label {row['label']!r} is not the journal's: {reply}")

    def _read_rows(self) -> list[dict[str, Any]]:
        storage = self._storage
        names = [name for name in storage.list_files("labels") if name.endswith(".parquet")]
        return [row for name in names for row in storage.read_table(name).to_pylist()]
