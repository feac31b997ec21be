"""The table of systems that are compared; it imports nothing heavy, for the report."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.data.testset import TestRow
from common.records import Response
from common.sections import Endpoint
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
        baselines: keys of the systems to compare it with; see also `list_baselines`.
        is_student: whether a student answers.
        has_few_shot: it needs few-shot examples in the task.
        is_merged: it needs the train job's merged student, unquantised.
        endpoint: the API that answers, one of `evaluate.endpoints`.
    """

    key: str
    title: str
    ask: Callable[["SystemRunner", Sequence[TestRow]], list[Response]]
    baselines: tuple[str, ...] = ()
    is_student: bool = False
    has_few_shot: bool = False
    is_merged: bool = False
    endpoint: Endpoint | None = None

    def applies(self, task: Task, has_merged: bool) -> bool:
        """Whether a run has this system."""
        return bool(task.few_shot or not self.has_few_shot) and (has_merged or not self.is_merged)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What its answers alone depend on."""
        return {"endpoint": self.endpoint.describe()} if self.endpoint else {}


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
"""By key, in the order of the report; the endpoints of the settings come after them."""


def make_endpoint_system(name: str, endpoint: Endpoint) -> System:
    """A served model as a system."""
    return System(
        name,
        name_system(name),
        lambda runner, rows: runner.ask_endpoint(name, endpoint, rows),
        endpoint=endpoint,
    )


def name_system(key: str) -> str:
    """The title of a system; one that is not in the table is an endpoint."""
    return SYSTEMS[key].title if key in SYSTEMS else f"Endpoint {key}"


def order_systems(keys: Collection[str]) -> list[str]:
    """The keys in the order of the report."""
    return [*(key for key in SYSTEMS if key in keys), *(key for key in keys if key not in SYSTEMS)]


def list_baselines(key: str, keys: Collection[str]) -> tuple[str, ...]:
    """What a system is compared with, if `keys` are evaluated.

    An endpoint is compared with the teacher, and the distilled student with all endpoints.
    """
    if key not in SYSTEMS:
        return ("teacher",)
    endpoints = [other for other in keys if other not in SYSTEMS] if key == "distilled" else []
    return (*SYSTEMS[key].baselines, *endpoints)


def list_systems(
    task: Task, has_merged: bool, endpoints: Mapping[str, Endpoint] | None = None
) -> list[System]:
    """The systems of a run, the students last, since they take longest."""
    found = [system for system in SYSTEMS.values() if system.applies(task, has_merged)]
    found += [make_endpoint_system(*item) for item in (endpoints or {}).items()]
    return sorted(found, key=lambda system: system.is_student)
