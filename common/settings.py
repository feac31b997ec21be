"""All settings: the environment variable DISTILL_<SECTION>__<FIELD> sets a field.

`common.sections` has the fields, `common.environment` reads them.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.fields import MOST_CHARACTERS, RUN_NAME, Section
from common.sections import (
    BUILTIN,
    SECRETS,
    DataSettings,
    EvaluateSettings,
    LabelSettings,
    PredictSettings,
    ReportSettings,
    StorageSettings,
    StudentSettings,
    TeacherSettings,
    TrainSettings,
)
from common.urls import Location

PREFIX = "DISTILL_"
FIRST_DEFAULTS = {"train.learning_rate": 2e-4}
"""The first defaults of settings whose default has changed: what fingerprints omit."""


class Settings(BaseSettings):
    """All settings, by section."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        str_strip_whitespace=True,
        str_max_length=MOST_CHARACTERS,
    )

    run: str = Field("default", description="Name of the run: its folder under the storage root.")
    task: Location = Field("gec", description="Built-in task, or path or s3 URL of a task file.")
    storage: StorageSettings = Field(default_factory=StorageSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    teacher: TeacherSettings = Field(default_factory=TeacherSettings)
    label: LabelSettings = Field(default_factory=LabelSettings)
    student: StudentSettings = Field(default_factory=StudentSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    predict: PredictSettings = Field(default_factory=PredictSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)

    def describe(self, sections: Sequence[str]) -> dict[str, Any]:
        """The settings of some sections, without secrets; of extra headers, the names."""
        secrets: Any = {"teacher": set(SECRETS), "data": {"s3_secret"}}
        described = self.model_dump(mode="json", include=set(sections), exclude=secrets)
        if "teacher" in described:
            described["teacher"]["extra_headers"] = sorted(self.teacher.extra_headers)
        return described

    def fingerprint(
        self, section: str, names: Iterable[str] | None = None, exclude: Iterable[str] = ()
    ) -> dict[str, Any]:
        """A section's settings as `section.field`, without those at their default.

        A new setting thus leaves the fingerprints of finished runs unchanged, and a new default
        does not. A setting whose default comes from elsewhere, such as OPENAI_BASE_URL, is never
        left out.
        """
        group: Section = getattr(self, section)
        fields = set(type(group).model_fields if names is None else names) - set(exclude)
        values = group.model_dump(mode="json", include=fields)
        known = type(group).model_fields
        keys = {name: f"{section}.{name}" for name in values}
        return {
            key: values[name]
            for name, key in keys.items()
            if known[name].default_factory
            or values[name] != FIRST_DEFAULTS.get(key, known[name].default)
        }

    def for_workers(self) -> "Settings":
        """A copy for other processes and machines: an absolute root, no secrets."""
        secrets = {"api_key": SecretStr(""), "extra_headers": {}}
        teacher = self.teacher.model_copy(update=secrets)
        storage = self.storage.model_copy(update={"root": self.storage.absolute_root})
        data = self.data.model_copy(update={"s3_secret": SecretStr("")})
        return self.model_copy(update={"teacher": teacher, "storage": storage, "data": data})

    @field_validator("run")
    @classmethod
    def _check_run(cls, run: str) -> str:
        if not re.fullmatch(RUN_NAME, run):
            raise ValueError("should be up to 200 letters, digits, dots, dashes and underscores")
        return run

    @model_validator(mode="before")
    @classmethod
    def _prefer_builtin_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        student, train = given.get("student") or {}, given.get("train") or {}
        if not isinstance(student, dict) or student.get("models"):
            return given
        if student.get("model") == BUILTIN:
            return given | {"train": {"preset": BUILTIN} | train}
        return given


def find_default(name: str) -> Any:
    """The value of a `section.field` that a fingerprint omits; None without a default."""
    if name in FIRST_DEFAULTS:
        return FIRST_DEFAULTS[name]
    section, _, field_name = name.partition(".")
    section_field = Settings.model_fields.get(section)
    kind = section_field.annotation if section_field else None
    if not isinstance(kind, type) or not issubclass(kind, Section):
        return None
    field = kind.model_fields.get(field_name)
    has_default = field is not None and not field.is_required() and not field.default_factory
    return field.default if field is not None and has_default else None
