"""A task: one declarative TOML file that says what the teacher is asked and what the student sees.

`gec.toml` beside this file is the built-in one, and the pattern for others.
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
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from common.errors import InputError, SettingsError
from common.metrics.metrics import METRICS
from common.records import PREDICTION_SCHEMA, hash_content
from common.tasks.languages import LANGUAGES


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_place(prompt: str) -> str:
    if "{text}" not in prompt:
        raise ValueError("needs {text}, the place of the example")
    return prompt


TextTemplate = Annotated[str, AfterValidator(_check_place)]


class Columns(_Part):
    """Where a data set keeps what the task needs; settings may name other columns."""

    text: str = "text"
    text_prefix: str = ""
    """Taken off every text that starts with it."""
    reference: str = "reference"
    """A string or a list of strings; read by the evaluate job only."""
    groups: list[str] = []
    """Columns to report on separately, where they exist."""

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, names: list[str]) -> list[str]:
        for name in names:
            if name in PREDICTION_SCHEMA.names:
                raise ValueError(
                    f"{name!r} is a column of the predictions; give yours another name"
                )
        return names


class CompletionTemplate(_Part):
    """The legacy completions endpoint's prompt: start, one example after the other, end."""

    start: str = "{system}\n\n"
    example: str = "{text}\n{label}\n\n"
    end: TextTemplate = "{text}\n"
    stop: list[str] = ["\n\n"]


class TeacherPrompt(_Part):
    """What the teacher is asked."""

    system: str = ""
    user: TextTemplate = "{text}"
    completion: CompletionTemplate = CompletionTemplate()


class FewShot(_Part):
    """A worked example for the teacher."""

    text: str
    label: str


class StudentPrompt(_Part):
    """What the student sees, in training and in evaluation."""

    prompt: TextTemplate = "{text}"

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        if prompt.endswith(" "):
            raise ValueError("ends in a space, which tokenizers join to the label's first word")
        return prompt


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


class LabelRules(_Part):
    """How a response becomes a label, and which responses are filtered instead."""

    unquote: bool = False
    """Take off quotes around the response that the text does not have."""
    single_line: bool = False
    """Filter a response of more than one line."""
    lower_case: bool = False
    allowed: list[str] = []
    """The only labels there are, for classification; empty: any. A response may end in a full stop,
    and have other capitals."""
    reject_patterns: list[Annotated[re.Pattern[str], BeforeValidator(_compile)]] = []
    """Regular expressions of chatter and refusals."""
    min_length_ratio: float = Field(0.0, ge=0)
    """Of the label's length to the text's, in characters; texts under 20 characters are exempt."""
    max_length_ratio: float = Field(float("inf"), gt=0)
    languages: list[str] = []
    """The texts' languages, by their ISO 639 codes: filter a label in another one than its text's,
    where both are plain to see. Empty: a label may be in any language."""
    max_edit_ratio: float = Field(1.0, gt=0, le=1)
    """Of the characters to edit between text and label (Levenshtein's distance) to the longer one's
    length, letters' case aside; 1: any. Texts under 20 characters are exempt."""

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, languages: list[str]) -> list[str]:
        for language in languages:
            if language not in LANGUAGES:
                raise ValueError(f"{language!r} is no code of a known language, such as 'en'")
        if len(set(languages)) == 1:
            raise ValueError("needs at least two languages to tell apart, or none")
        return languages


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
"""The fields that version 0.1 has, and hashes whatever their values."""


class Task(_Part):
    """A whole task file."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    description: str = ""
    metrics: list[str] = Field(["exact_match"], min_length=1)
    columns: Columns = Columns()
    unseen: list[Literal["text", "reference"]] = ["text"]
    """What a test row may not share with a train row: text, reference."""
    teacher: TeacherPrompt = TeacherPrompt()
    few_shot: list[FewShot] = []
    student: StudentPrompt = StudentPrompt()
    label_rules: LabelRules = LabelRules()

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in METRICS:
                raise ValueError(f"{name!r} is no metric; there are {', '.join(METRICS)}")
        if METRICS[names[0]].is_better_low:
            raise ValueError(f"{names[0]!r} is the better the lower; the first one is the main one")
        return names

    @property
    def label_fingerprint(self) -> str:
        """A hash of what labels depend on.

        Fields that were added after `_FIRST_FIELDS` count where they are not at their default, so
        that a new field leaves the hashes of finished runs as they are.
        """
        first = self.model_dump(mode="json", include=_FIRST_FIELDS)
        later = self.model_dump(
            mode="json", include=set(_FIRST_FIELDS), exclude=_FIRST_FIELDS, exclude_defaults=True
        )
        later = _drop_empty(later)
        return hash_content([first, later] if later else first)

    def make_messages(self, text: str) -> list[dict[str, str]]:
        """The chat messages for one text: system, worked examples as turns, the text."""
        messages = [{"role": "system", "content": self.teacher.system}]
        for shot in self.few_shot:
            messages.append({"role": "user", "content": fill(self.teacher.user, text=shot.text)})
            messages.append({"role": "assistant", "content": shot.label})
        messages.append({"role": "user", "content": fill(self.teacher.user, text=text)})
        return messages if self.teacher.system else messages[1:]

    def make_completion_prompt(self, text: str) -> str:
        """The same as one string for the legacy completions endpoint."""
        template, system = self.teacher.completion, self.teacher.system
        shots = "".join(
            fill(template.example, text=s.text, label=s.label, system=system) for s in self.few_shot
        )
        start = fill(template.start, system=system)
        return start + shots + fill(template.end, text=text, system=system)

    def make_student_prompt(self, text: str) -> str:
        """The student's prompt for one text, before any chat template."""
        return fill(self.student.prompt, text=text)


def fill(template: str, **values: str) -> str:
    """Puts values in the place of their {names}, once: braces in a value stay as they are."""
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)


def _drop_empty(content: Any) -> Any:
    """The content without parts that hold nothing."""
    if isinstance(content, dict):
        kept = {key: _drop_empty(value) for key, value in content.items()}
        return {key: value for key, value in kept.items() if value not in ({}, [])}
    if isinstance(content, list) and not any(map(_drop_empty, content)):
        return []
    return content


def load_task(name: str) -> Task:
    """Loads a built-in task by name, or a task file by path or URL.

    Raises:
        SettingsError: there is no such built-in task.
        InputError: the file cannot be read, or is no valid task.
    """
    try:
        return Task.model_validate(_read_toml(name))
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(where, _list_fields(Task), n=1, cutoff=0)[0]
            reason = f"there is no such field; the nearest is {nearest}"
        raise InputError(f"task file {name!r}: {where}={first['input']!r}: {reason}") from None


def _list_fields(part: type[BaseModel], prefix: str = "") -> list[str]:
    """The names of a task file's fields, with dots."""
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
        raise InputError(f"task file {name!r} is not valid TOML: {error}") from None
    except Exception as error:  # each storage has errors of its own
        raise InputError(
            f"DISTILL_TASK: the task file {name!r} cannot be read: {type(error).__name__}: {error}"
        ) from None
