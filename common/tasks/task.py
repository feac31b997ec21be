"""A task: a TOML file with the prompts of teacher and student, and the label rules.

`gec.toml` in this folder is the built-in task and an example for others.
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from common.errors import InputError, SettingsError, shorten, show
from common.metrics.metrics import METRICS
from common.records import PREDICTION_SCHEMA, hash_content
from common.tasks.cleaning import guard
from common.tasks.rules import LabelRules


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_place(prompt: str) -> str:
    if "{text}" not in prompt:
        raise ValueError("needs {text}, the placeholder of the example")
    return prompt


TextTemplate = Annotated[str, AfterValidator(_check_place)]


class Columns(_Part):
    """The dataset's columns; settings may name others."""

    text: str = "text"
    text_prefix: str = ""
    """Removed from texts that start with it."""
    reference: str = "reference"
    """Strings or lists of strings; only the evaluate job reads them."""
    groups: list[str] = []
    """Columns to group the results by, if they exist."""

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, names: list[str]) -> list[str]:
        for name in names:
            if name in PREDICTION_SCHEMA.names:
                raise ValueError(f"{name!r} is a column of the predictions; rename yours")
        return names


class CompletionTemplate(_Part):
    """The prompt for the legacy completions endpoint: start, examples, end."""

    start: str = "{system}\n\n"
    example: str = "{text}\n{label}\n\n"
    end: TextTemplate = "{text}\n"
    stop: list[str] = ["\n\n"]


class TeacherPrompt(_Part):
    """The teacher's prompt."""

    system: str = ""
    user: TextTemplate = "{text}"
    response_format: dict[str, Any] = {}
    """The chat API's parameter, such as a JSON schema; left out where the teacher refuses it."""
    completion: CompletionTemplate = CompletionTemplate()


class FewShot(_Part):
    """A worked example for the teacher."""

    text: str
    label: str


class StudentPrompt(_Part):
    """The student's prompt, in training and in evaluation."""

    prompt: TextTemplate = "{text}"
    rationale: TextTemplate | None = None
    """A second prompt, for which the student learns the teacher's reasoning."""

    @field_validator("prompt", "rationale")
    @classmethod
    def _check_prompt(cls, prompt: str | None) -> str | None:
        if prompt and prompt.endswith(" "):
            raise ValueError("ends in a space, which tokenizers join to the label's first word")
        return prompt


_FIRST_FIELDS: dict[str, Any] = {
    "teacher": {
        "system": True,
        "user": True,
        "completion": {"start": True, "example": True, "end": True, "stop": True},
    },
    "few_shot": {"__all__": {"text": True, "label": True}},
    "label_rules": dict.fromkeys(
        (
            "unquote",
            "single_line",
            "lower_case",
            "allowed",
            "reject_patterns",
            "min_length_ratio",
            "max_length_ratio",
            "languages",
            "max_edit_ratio",
        ),
        True,
    ),
}
"""The fields of version 0.1, which the fingerprint has even at their default."""


class Task(_Part):
    """A whole task file."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    description: str = ""
    metrics: list[str] = Field(["exact_match"], min_length=1)
    columns: Columns = Columns()
    unseen: list[Literal["text", "reference"]] = ["text"]
    """What a test row must not share with a train row."""
    teacher: TeacherPrompt = TeacherPrompt()
    few_shot: list[FewShot] = []
    student: StudentPrompt = StudentPrompt()
    label_rules: LabelRules = LabelRules()

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in METRICS:
                raise ValueError(f"{name!r} is not a metric; choose from {', '.join(METRICS)}")
        if METRICS[names[0]].is_better_low:
            raise ValueError(
                f"{names[0]!r} is better the lower, and cannot be first, as the main one"
            )
        return names

    @property
    def label_fingerprint(self) -> str:
        """A hash of what labels depend on.

        Fields added after `_FIRST_FIELDS` count only if they are not at their default, so that a
        new field does not change the hashes of finished runs.
        """
        first = self.model_dump(mode="json", include=_FIRST_FIELDS)
        later = self.model_dump(
            mode="json", include=set(_FIRST_FIELDS), exclude=_FIRST_FIELDS, exclude_defaults=True
        )
        return hash_content([first, later] if (later := _drop_empty(later)) else first)

    def make_messages(self, text: str) -> list[dict[str, str]]:
        """The chat messages for one text: system, few-shot examples as turns, the text."""
        messages = [{"role": "system", "content": self.teacher.system}]
        for shot in self.few_shot:
            messages.append({"role": "user", "content": fill(self.teacher.user, text=shot.text)})
            messages.append({"role": "assistant", "content": shot.label})
        messages.append({"role": "user", "content": fill(self.teacher.user, text=text)})
        return messages if self.teacher.system else messages[1:]

    def make_completion_prompt(self, text: str) -> str:
        """The prompt for one text for the legacy completions endpoint.

        Servers parse markers such as [/INST] in all of it; so those in texts are broken.
        """
        template, system = self.teacher.completion, self.teacher.system
        shots = "".join(
            fill(template.example, text=guard(s.text), label=guard(s.label), system=system)
            for s in self.few_shot
        )
        start = fill(template.start, system=system)
        return start + shots + fill(template.end, text=guard(text), system=system)

    def make_student_prompt(self, text: str) -> str:
        """The student's prompt for one text, without chat template."""
        return fill(self.student.prompt, text=text)


def fill(template: str, **values: str) -> str:
    """Replaces {names} by their values; braces in a value stay as they are."""
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)


def _drop_empty(content: Any) -> Any:
    """The content without empty parts."""
    if isinstance(content, dict):
        kept = {key: _drop_empty(value) for key, value in content.items()}
        return {key: value for key, value in kept.items() if value not in ({}, [])}
    if isinstance(content, list) and not any(map(_drop_empty, content)):
        return []
    return content


def load_task(name: str) -> Task:
    """Loads a built-in task by name, or a task file by path or URL.

    Raises:
        SettingsError: no built-in task has this name.
        InputError: the file cannot be read, or is not a valid task.
    """
    try:
        return Task.model_validate(_read_toml(name))
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = shorten(".".join(map(str, first["loc"])))
        reason = shorten(first["msg"].removeprefix("Value error, "))
        if first["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(where, _list_fields(Task), n=1, cutoff=0)[0]
            reason = f"there is no such field; the nearest is {nearest}"
        raise InputError(f"task file {name!r}: {where}={show(first['input'])}: {reason}") from None


def _list_fields(part: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of a task file's fields."""
    names: list[str] = []
    for name, field in part.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _list_fields(field.annotation, f"{prefix}{name}.")
    return names


def _read_toml(name: str) -> dict[str, Any]:
    folder = Path(__file__).parent
    if re.fullmatch(r"[\w-]+", name):
        builtin = sorted(path.stem for path in folder.glob("*.toml"))
        if name not in builtin:
            nearest = difflib.get_close_matches(name, builtin, n=1, cutoff=0)[0]
            raise SettingsError(
                f"DISTILL_TASK={name!r}: there is no built-in task of this name (the nearest is "
                f"{nearest!r}); a task file of your own is given by its path, such as ./{name}.toml"
            )
        name = str(folder / f"{name}.toml")
    try:
        with fsspec.open(name, "rb") as file:
            return tomllib.loads(file.read().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"task file {name!r} is not valid TOML: {shorten(error)}") from None
    except Exception as error:  # each storage raises its own types
        reason = f"{type(error).__name__}: {shorten(error)}"
        raise InputError(f"DISTILL_TASK: the task file {name!r} cannot be read: {reason}") from None
