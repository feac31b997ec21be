"""The label parts: labels/part-<name>.parquet, written by the workers as rows are finished.

Rows without an answer are in files of their own, labels/failed-<name>.parquet, which only the job
that wrote them counts: the next one asks again. A part's metadata has the fingerprint of the
labels. What a part holds is not read again by a job that resumes, except its ids.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.data.examples import Examples, pack_ids
from common.errors import DistillError
from common.labels.label_row import Outcome, is_final
from common.labels.resume import Known, read_known, resume
from common.records import LABEL_SCHEMA, Example, LabelRow, make_label_table
from common.run.run import Run
from common.run.steps import LABELS
from common.teacher.sealed import Sealed, write_sealed

_PART_ROWS = 10_000
_PART_CHARACTERS = 16_000_000
_SAMPLE_ROWS = 2000
_KEY = b"distill.fingerprint"


class Parts:
    """The parts of one session's labels; a worker's are of the same `session` and `fingerprint`."""

    def __init__(self, run: Run, fingerprint: str, session: str | None = None) -> None:
        self.fingerprint, self.session = fingerprint, session or uuid.uuid4().hex[:8]
        self.run = run
        self._waiting: list[Outcome] = []
        self._characters = 0

    def add(self, outcome: Outcome) -> None:
        """Keeps an outcome for the next part."""
        self._waiting.append(outcome)
        replies = sum(len(reply.body) for reply in outcome.replies)
        self._characters += len(outcome.row.text) + replies

    @property
    def is_full(self) -> bool:
        """Whether a part should be written."""
        return len(self._waiting) >= _PART_ROWS or self._characters >= _PART_CHARACTERS

    def take(self) -> list[Outcome]:
        """What waits for the next part."""
        taken, self._waiting, self._characters = self._waiting, [], 0
        return taken

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Seals the replies and writes the rows; a crash in between loses nothing."""
        if not outcomes:
            return
        run, name = self.run, f"{self.session}-{uuid.uuid4().hex[:12]}"
        sealed = [Sealed(Example(o.row.id, o.row.text), o.replies) for o in outcomes]
        write_sealed(run.storage, name, sealed, run.price, run.settings.teacher.max_tokens)
        rows = [outcome.row for outcome in outcomes]
        self._write(f"part-{name}", [row for row in rows if is_final(row)])
        self._write(f"failed-{name}", [row for row in rows if not is_final(row)])

    def _add_and_write(self, outcome: Outcome) -> None:
        """Keeps an outcome, and writes a part if it is full."""
        self.add(outcome)
        if self.is_full:
            self.write(self.take())

    def _write(self, name: str, rows: list[LabelRow]) -> None:
        if rows:
            table = make_label_table(rows).replace_schema_metadata({_KEY: self.fingerprint})
            self.run.storage.write_table(f"{LABELS.folder}/{name}.parquet", table)

    def resume(self, examples: Examples) -> Known:
        """What is left to ask; what is paid for and in no part is written to parts.

        Charges the lost calls of crashed sessions.
        """
        known = resume(self.run, examples, self._add_and_write, done := self.find_done(examples))
        self.write(self.take())
        return self._note_answers(known, examples, done)

    def look(self, examples: Examples) -> tuple[Known, list[LabelRow]]:
        """As `resume`, but writes nothing; also some rows."""
        rows = self.read_sample()

        def keep(outcome: Outcome) -> None:
            if len(rows) < _SAMPLE_ROWS:
                rows.append(outcome.row)

        known = read_known(self.run, examples, keep, done := self.find_done(examples))
        return self._note_answers(known, examples, done), rows

    @staticmethod
    def _note_answers(known: Known, examples: Examples, done: NDArray[np.bool_]) -> Known:
        has_answer = known.has_answer or bool((done & ~examples.mark_blank()).any())
        return replace(known, has_answer=has_answer)

    def find_done(self, examples: Examples) -> NDArray[np.bool_]:
        """Which examples have a row in a part."""
        done = np.zeros(len(examples), bool)
        for _, table in self._iterate("part-", ["id"]):
            places = examples.find(pack_ids(table["id"].to_pylist()))
            done[places[places >= 0]] = True
        return done

    def read_sample(self) -> list[LabelRow]:
        """Some rows of a part."""
        for name, _ in self._iterate("part-", ["id"]):
            table = self.run.storage.read_table(name, LABEL_SCHEMA).slice(0, _SAMPLE_ROWS)
            return [LabelRow(**row) for row in table.to_pylist()]
        return []

    def _iterate(self, prefix: str, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
        """The files of these labels with some of their columns."""
        storage = self.run.storage
        for name in storage.list_files(LABELS.folder):
            if name.startswith(f"{LABELS.folder}/{prefix}") and name.endswith(".parquet"):
                table = storage.read_columns(name, columns, LABEL_SCHEMA)
                if (table.schema.metadata or {}).get(_KEY) == self.fingerprint.encode():
                    yield name, table

    def finish(self, examples: Examples, tables: Iterable[pa.Table] = ()) -> list[str]:
        """The names of the files, which have one row for each example.

        `tables` has rows that may be in no part yet. Raises a DistillError if rows are missing.
        """
        done = self.find_done(examples)
        known = read_known(self.run, examples, self._add_and_write, done)
        for row in (LabelRow(**row) for table in tables for row in table.to_pylist()):
            if known.missing.find(pack_ids([row.id])) >= 0:
                self._add_and_write(Outcome(row))
        self.write(self.take())
        return self._drop_copies(examples)

    def _drop_copies(self, examples: Examples) -> list[str]:
        """Leaves one row for each example; returns the names of the files.

        Rows may be there twice if a worker outlived its job, or died after it wrote a part.
        """
        seen, names = np.zeros(len(examples), bool), []
        for prefix in ("part-", f"failed-{self.session}-"):
            for name, table in self._iterate(prefix, ["id"]):
                places = examples.find(pack_ids(table["id"].to_pylist()))
                first = np.zeros(len(places), bool)
                first[np.unique(places, return_index=True)[1]] = True
                is_new = first & (places >= 0) & ~seen[places]
                if not is_new.all():
                    table = self.run.storage.read_table(name, LABEL_SCHEMA).filter(is_new)
                    self.run.storage.write_table(name, table)
                seen[places[is_new]] = True
                names.append(name)
        if lost := int((~seen).sum()):
            raise DistillError(f"{lost} of {len(examples)} rows were lost; run again")
        return names

    def remove_others(self, names: Iterable[str]) -> None:
        """Removes the files of other labels and of earlier jobs."""
        storage, kept = self.run.storage, {*names, LABELS.manifest}
        storage.remove(*set(storage.list_files(LABELS.folder)) - kept)
