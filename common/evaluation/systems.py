"""The table of systems that are compared; it imports nothing heavy, for the report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.data.testset import TestRow
from common.records import Response
from common.tasks.task import Task

if TYPE_CHECKING:
    from common.evaluation.runner import SystemRunner


@dataclass(frozen=True)
class System:
    """A system that answers test rows.

    Attributes:
        key: its name in files.
        title: its name in the report.
        ask: gives its answers, in the order of the rows.
        baselines: keys of the systems to compare it with.
        is_student: whether a student answers.
        has_few_shot: it needs few-shot examples in the task.
        is_merged: it needs the train job's merged student, unquantised.
    """

    key: str
    title: str
    ask: Callable[["SystemRunner", Sequence[TestRow]], list[Response]]
    baselines: tuple[str, ...] = ()
    is_student: bool = False
    has_few_shot: bool = False
    is_merged: bool = False

    def applies(self, task: Task, has_merged: bool) -> bool:
        """Whether a run has this system."""
        return bool(task.few_shot or not self.has_few_shot) and (has_merged or not self.is_merged)


def copy_input(rows: Sequence[TestRow]) -> list[Response]:
    """The texts unchanged, as a baseline."""
    return [Response(row.text.strip(), 0, 0.0) for row in rows]


SYSTEMS: dict[str, System] = {
    system.key: system
    for system in (
        System("copy", "Copying the input", lambda runner, rows: copy_input(rows)),
        System(
            "base",
            "Base student",
            lambda runner, rows: runner.ask_student(rows, with_adapter=False),
            is_student=True,
        ),
        System(
            "base_few_shot",
            "Base student, few-shot",
            lambda runner, rows: runner.ask_student(rows, with_adapter=False, with_few_shot=True),
            is_student=True,
            has_few_shot=True,
        ),
        System(
            "distilled",
            "Distilled student",
            lambda runner, rows: runner.ask_student(rows),
            baselines=("base", "base_few_shot", "copy", "teacher"),
            is_student=True,
        ),
        System(
            "merged",
            "Distilled student, merged",
            lambda runner, rows: runner.ask_merged(rows),
            baselines=("distilled",),
            is_student=True,
            is_merged=True,
        ),
        System("teacher", "Teacher", lambda runner, rows: runner.ask_teacher(rows)),
    )
}
"""By key, in the order of the report."""


def list_systems(task: Task, has_merged: bool) -> list[System]:
    """The systems of a run, the students last, since they take longest."""
    found = [system for system in SYSTEMS.values() if system.applies(task, has_merged)]
    return sorted(found, key=lambda system: system.is_student)
