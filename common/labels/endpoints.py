"""Runs within a run: <run>/endpoints/<name>, one for each served model that is compared.

Its model takes the teacher's place, and has a journal of its own: no reply is taken for the
teacher's or another endpoint's, and none counts as a cost of the labels. The cost cap is that of
the whole run.
"""

from typing import Any

from typing_extensions import TypedDict

from common.data.examples import Examples
from common.environment import read_key
from common.errors import InputError
from common.labels.resume import read_known
from common.run.run import Run
from common.run.storage import RunStorage
from common.sections import Endpoint, TeacherSettings
from common.settings import Settings
from common.tasks.rules import LabelRules
from common.tasks.task import Task, TeacherPrompt

FOLDER = "endpoints"
RECORD = "endpoint.json"
"""The model whose replies the journal has, for their price."""


class _Record(TypedDict):
    base_url: str
    model: str


def open_endpoint(run: Run, name: str, endpoint: Endpoint) -> Run:
    """The run of an endpoint whose model is known. Raises a SettingsError if its key is missing."""
    variable, settings = endpoint.api_key_variable, run.settings
    is_teacher = endpoint.prompt == "teacher"
    longest = settings.teacher.max_tokens if is_teacher else settings.evaluate.max_new_tokens
    inherited = settings.teacher.model_dump(
        include={"max_concurrency", "timeout_seconds", "max_attempts", "prices"}
        | {"startup_seconds", "outage_seconds"}
    )
    teacher = TeacherSettings(
        **inherited,
        base_url=endpoint.base_url,
        model=endpoint.model,
        api_key=read_key(variable) if variable else "",
        max_tokens=endpoint.max_tokens or longest,
        requests_per_minute=endpoint.requests_per_minute,
        extra_body=endpoint.extra_body,
    )
    return _open(run, name, teacher, _make_task(run.task, endpoint))


def _open(run: Run, name: str, teacher: TeacherSettings, task: Task) -> Run:
    own: dict[str, Any] = {"run": f"{run.settings.run}/{FOLDER}/{name}", "teacher": teacher}
    label = run.settings.label.model_copy(update={"samples": 1})
    settings: Settings = run.settings.model_copy(update=own | {"label": label})
    return Run(settings, task, RunStorage(settings))


def _make_task(task: Task, endpoint: Endpoint) -> Task:
    """The task with the endpoint's prompt as the teacher's; no rule filters its answers."""
    changes: dict[str, Any] = {"label_rules": LabelRules()}
    if endpoint.prompt != "teacher":
        prompt = task.student.prompt if endpoint.prompt == "student" else "{text}"
        changes |= {"teacher": TeacherPrompt(user=prompt), "few_shot": []}
    return task.model_copy(update=changes)


def record_model(own: Run) -> None:
    """Notes an endpoint's model. Raises an InputError if its journal is another model's."""
    teacher, storage = own.settings.teacher, own.storage
    now = {"base_url": teacher.base_url, "model": teacher.model}
    before = storage.read_json(RECORD, _Record) if storage.exists(RECORD) else now
    if before != now:
        raise InputError(
            f"{storage.url} has answers of {before['model']!r} at {before['base_url']}, and not of "
            f"{now['model']!r} at {now['base_url']}; give the new endpoint a name of its own, or "
            "delete that folder"
        )
    storage.write_json(RECORD, now)


def measure_cost(run: Run, name: str) -> float:
    """The dollars for an endpoint's replies; 0 if there are none, or nothing tells their price."""
    if not run.storage.exists(f"{FOLDER}/{name}/{RECORD}"):
        return 0.0
    record = run.storage.read_json(f"{FOLDER}/{name}/{RECORD}", _Record)
    teacher = run.settings.teacher.model_copy(update=record)
    own = _open(run, name, teacher, run.task)
    return read_known(own, Examples.of([]), lambda outcome: None).cost_usd


def measure_costs(run: Run) -> float:
    """The dollars for the replies of all endpoints of a run, also of those before."""
    files = run.storage.list_files(FOLDER)
    return sum(measure_cost(run, name) for name in {file.split("/")[1] for file in files})
