"""A student on Ray that answers blocks."""

import logging
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Any

import pyarrow as pa

from common.environment import load_environment
from common.errors import InputError, explain_error
from common.evaluation.confidence import Calibration
from common.outputs.answers import answer_block
from common.outputs.inputs import open_outputs
from common.outputs.parts import REPEATED, OutputParts
from common.outputs.source import unpack
from common.records import make_schema
from common.run.lock import is_locked
from common.run.manifest import require_manifest
from common.run.run import PackedRun
from common.run.steps import ADAPTER
from common.signals import die_with_parent
from common.torch_environment import prepare_torch

_ADVICE = "a batch of one row is too large; lower DISTILL_EVALUATE__MAX_NEW_TOKENS"
MEMORY_ADVICE = "give the nodes more memory or lower DISTILL_PREDICT__ACTORS, and run again"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockResult:
    """What a block has come to: rows, of which so many are left open, in so many seconds.

    `failure` is the name of the error that the job ends with, `message` its message.
    """

    rows: int = 0
    open: int = 0
    seconds: float = 0.0
    failure: str = ""
    message: str = ""


RESULT_SCHEMA = make_schema(BlockResult)


class StudentActor:
    """One student; it writes the parts."""

    def __init__(
        self, packed: PackedRun, folder: str, fingerprint: str, calibration: Calibration | None
    ) -> None:
        """The parts are in the `folder` and have the `fingerprint`."""
        die_with_parent()
        self._packed, self._calibration = packed, calibration
        self._folder, self._fingerprint = folder, fingerprint
        self._student: Any = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers the blocks of a batch. An error, of which Ray tells little, comes as a row."""
        results = []
        for block in batch.to_pylist():
            try:
                results.append(self._answer(**block))
            except Exception as error:
                log.warning("a block has failed", exc_info=error)  # into Ray's log
                failure = explain_error("a student", error, MEMORY_ADVICE)
                message = f"{failure} (on {gethostname()})"
                results.append(BlockResult(failure=type(failure).__name__, message=message))
        return pa.Table.from_pylist([asdict(result) for result in results], RESULT_SCHEMA)

    def _answer(self, part: str, rows: bytes, is_new: bytes) -> BlockResult:
        from common.student.memory import explaining_memory

        if self._student is None:
            self._open()
        started = time.monotonic()
        rules = self._packed.task.label_rules
        with explaining_memory(_ADVICE):
            samples = self._packed.settings.evaluate.samples
            ask = partial(self._student.answer, samples=samples)
            table = answer_block(*unpack(rows, is_new), ask, rules, self._calibration)
        self._parts.write(part, table)
        left_open = table["error"].to_pylist().count(REPEATED)
        return BlockResult(table.num_rows, left_open, time.monotonic() - started)

    def _open(self) -> None:
        """Raises a DistillError if this node lacks a required GPU, the storage or the student."""
        load_environment()  # this node's secret files may hold the object store's keys
        prepare_torch(os.environ)
        from common.student.student import open_student
        from common.student.weights import check_device

        check_device(self._packed.settings)
        run = self._packed.open({})
        if not is_locked(open_outputs(run.settings, self._folder)):
            raise InputError(
                f"DISTILL_STORAGE__ROOT: {run.storage.url} is not the job's folder on this node of "
                "the Ray cluster; name a root that all nodes share, such as s3://bucket/prefix"
            )
        adapter = require_manifest(run.storage, ADAPTER)
        with tempfile.TemporaryDirectory() as folder:
            run.storage.download(adapter.files, ADAPTER.folder, Path(folder))
            self._student = open_student(run.settings, run.task, Path(folder))
        self._parts = OutputParts(run.storage, self._folder, self._fingerprint)
