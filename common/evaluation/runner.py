"""Asks the systems: holds the teacher's session and the loaded student."""

import gc
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import torch

from common.data.testset import TestRow
from common.evaluation.online import ask_endpoint, ask_online, make_response
from common.evaluation.systems import System
from common.labels.endpoints import measure_cost
from common.records import Response
from common.run.manifest import Manifest
from common.run.run import Run
from common.run.steps import ADAPTER, MERGED, LabelSummary
from common.sections import Endpoint, StudentSettings
from common.student.memory import explaining_memory
from common.student.student import Student, open_student
from common.student.weights import describe_weights
from common.tasks.cleaning import clean
from common.tasks.patterns import SlowPatternError
from common.tasks.rules import LabelRules

_ADVICE = "a batch of one row is too large; lower DISTILL_EVALUATE__MAX_NEW_TOKENS"
_MERGED_ADVICE = "the merged student is not quantised; to leave it out, delete the run's merged/"

log = logging.getLogger(__name__)


class SystemFacts(TypedDict, total=False):
    """Unanswered rows by reason, cost, speed, precision and address of a system."""

    unanswered: dict[str, int]
    cost_usd_per_1000: float
    rows_per_second: float
    tokens_per_second: float
    precision: str
    endpoint: dict[str, Any]


class SystemRunner:
    """Asks systems; the student is loaded once."""

    def __init__(self, run: Run, adapter: Manifest[Any], merged: Manifest[Any] | None) -> None:
        self._run, self._adapter, self._merged = run, adapter, merged
        self._student: Student | None = None

    def ask(self, system: System, rows: Sequence[TestRow]) -> list[Response]:
        """A system's answers, cleaned, in the order of the rows.

        Raises a DistillError if that fails.
        """
        responses = system.ask(self, rows)
        if system.key != "teacher":  # whose labels are clean
            rules = self._run.task.label_rules
            pairs = zip(rows, responses, strict=True)
            responses = [_clean(row.text, response, rules) for row, response in pairs]
        if system.is_student:
            seconds = sum(response.seconds for response in responses)
            log.info("evaluate: %s, %d rows in %.0f s", system.key, len(rows), seconds)
        return responses

    def ask_teacher(self, rows: Sequence[TestRow]) -> list[Response]:
        """The teacher's labels, empty where it gave none; the journal keeps paid replies."""
        return [make_response(answer) for answer in ask_online(self._run, rows)]

    def ask_endpoint(
        self, name: str, endpoint: Endpoint, rows: Sequence[TestRow]
    ) -> list[Response]:
        """The answers of a served model."""
        return ask_endpoint(self._run, name, endpoint, rows)

    def ask_student(
        self, rows: Sequence[TestRow], with_adapter: bool = True, with_few_shot: bool = False
    ) -> list[Response]:
        """The student's answers, with its adapter on or off."""
        with explaining_memory(_ADVICE):
            self._student = self._student or self._load_student()
            texts = [row.text for row in rows]
            samples = self._run.settings.evaluate.samples if with_adapter else 0
            return self._student.answer(texts, with_adapter, with_few_shot, samples=samples)

    def _load_student(self) -> Student:
        with tempfile.TemporaryDirectory() as folder:
            self._run.storage.download(self._adapter.files, ADAPTER.folder, Path(folder))
            return open_student(self._run.settings, self._run.task, Path(folder))

    def ask_merged(self, rows: Sequence[TestRow]) -> list[Response]:
        """The answers of the merged student, unquantised, as a server would load it."""
        assert self._merged is not None
        run, self._student = self._run, None
        gc.collect()
        torch.cuda.empty_cache()
        with explaining_memory(_MERGED_ADVICE), tempfile.TemporaryDirectory() as folder:
            run.storage.download(self._merged.files, MERGED.folder, Path(folder))
            own = run.settings.model_copy(update={"student": _move(run.settings.student, folder)})
            student = open_student(own, run.task, is_quantized=False)
            return student.answer([row.text for row in rows])


def _clean(text: str, response: Response, rules: LabelRules) -> Response:
    """A cleaned response; one of which a pattern takes too long stays as it is."""
    with suppress(SlowPatternError):
        return replace(response, text=clean(text, response.text, rules)[0])
    return response


def _move(student: StudentSettings, folder: str) -> StudentSettings:
    """The settings of the same student in a local folder."""
    trusted = folder if student.trust_remote_code else ""
    return student.model_copy(
        update={"model": folder, "revision": None, "trust_remote_code": trusted}
    )


def describe_system(
    run: Run, system: System, table: pa.Table, labels: Manifest[LabelSummary]
) -> SystemFacts:
    """A system's facts; the teacher's cost is that of the labels."""
    errors = Counter(table["error"].drop_null().to_pylist())
    facts: SystemFacts = {"unanswered": dict(errors.most_common())}
    cost_usd = labels.summary.get("run_cost_usd")
    if system.key == "teacher" and cost_usd:
        facts["cost_usd_per_1000"] = 1000 * cost_usd / labels.summary["inputs"]
    if system.endpoint:
        facts["endpoint"] = system.endpoint.describe()
        if cost_usd := measure_cost(run, system.key):
            facts["cost_usd_per_1000"] = 1000 * cost_usd / len(table)
    if system.is_student:
        seconds = max(pc.sum(table["seconds"]).as_py(), 1e-9)
        facts["rows_per_second"] = len(table) / seconds
        facts["tokens_per_second"] = pc.sum(table["tokens"]).as_py() / seconds
        facts["precision"] = describe_weights(run.settings, is_quantized=not system.is_merged)
    return facts
