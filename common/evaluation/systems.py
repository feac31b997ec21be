"""The systems that are compared, in one table: whatever answers test rows.

Nothing heavy is imported here: the report reads the table, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.data.examples import TestRow
from common.records import Response
from common.tasks.model import Task

if TYPE_CHECKING:
    from common.evaluation.bench import Bench


@dataclass(frozen=True)
class System:
    """A line of the table.

    Attributes:
        key: its name in files.
        title: what people call it.
        ask: its answers to test rows, in their order.
        than: the keys of the systems that it is compared with.
        is_student: it answers many prompts at a time, with weights of our own.
        has_few_shot: it sees the task's few-shot examples, and is left out where there are none.
        is_merged: it is there where the train job has merged the adapter; it is not quantised.
    """

    key: str
    title: str
    ask: Callable[["Bench", Sequence[TestRow]], list[Response]]
    than: tuple[str, ...] = ()
    is_student: bool = False
    has_few_shot: bool = False
    is_merged: bool = False

    def applies(self, task: Task, has_merged: bool) -> bool:
        """Whether a run has this system."""
        return bool(task.few_shot or not self.has_few_shot) and (has_merged or not self.is_merged)


def copy_input(rows: Sequence[TestRow]) -> list[Response]:
    """The texts as they are: what doing nothing would score."""
    return [Response(row.text.strip(), 0, 0.0) for row in rows]


SYSTEMS: dict[str, System] = {
    system.key: system
    for system in (
        System("copy", "Copying the input", lambda bench, rows: copy_input(rows)),
        System(
            "base",
            "Base student",
            lambda bench, rows: bench.ask_student(rows, with_adapter=False),
            is_student=True,
        ),
        System(
            "base_few_shot",
            "Base student, few-shot",
            lambda bench, rows: bench.ask_student(rows, with_adapter=False, with_few_shot=True),
            is_student=True,
            has_few_shot=True,
        ),
        System(
            "distilled",
            "Distilled student",
            lambda bench, rows: bench.ask_student(rows),
            than=("base", "base_few_shot", "copy", "teacher"),
            is_student=True,
        ),
        System(
            "merged",
            "Distilled student, merged",
            lambda bench, rows: bench.ask_merged(rows),
            than=("distilled",),
            is_student=True,
            is_merged=True,
        ),
        System("teacher", "Teacher", lambda bench, rows: bench.ask_teacher(rows)),
    )
}
"""By key, in the order in which they are shown."""


def list_systems(task: Task, has_merged: bool) -> list[System]:
    """The systems that a run compares, the students last: they take the longest."""
    found = [system for system in SYSTEMS.values() if system.applies(task, has_merged)]
    return sorted(found, key=lambda system: system.is_student)
