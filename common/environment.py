"""Reads the settings from the environment, and describes them.

Precedence: the environment, `.env` in the working folder, secret files (one value a file, named
like the variable, in /run/secrets or $DISTILL_SECRETS_DIR), the defaults in `common.settings`. The
same places may set variables of other software: OPENAI_API_KEY, OPENAI_BASE_URL, AWS_*, HF_*,
RAY_ADDRESS.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from common.errors import SettingsError
from common.sections import SECRETS, Section
from common.settings import PREFIX, Settings

_FOREIGN = ("OPENAI_", "AWS_", "HF_", "RAY_ADDRESS", "RAY_AUTH_")
_SECRETS_DIR = "DISTILL_SECRETS_DIR"


def load_settings() -> Settings:
    """Reads the settings.

    Raises:
        SettingsError: a DISTILL_ variable is unknown, or a value is of the wrong type or range.
    """
    load_environment()
    known = {name for name, _, _ in list_settings()} | {_SECRETS_DIR}
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)[0]
            raise SettingsError(f"unknown setting {name}; the nearest known one is {nearest}")
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(map(_explain, error.errors()))) from None


def load_environment() -> None:
    """Adds `.env`, the secret files and AWS_REGION. Raises a SettingsError if one is unreadable."""
    try:
        _set_missing({name: value or "" for name, value in dotenv_values(".env").items()})
        _set_missing(_read_secret_files())
        _set_missing({"AWS_DEFAULT_REGION": os.environ.get("AWS_REGION", "")})
    except (UnicodeDecodeError, OSError) as error:
        raise SettingsError(f".env or a secret file cannot be read: {error}") from None


def read_teacher_secrets() -> dict[str, Any]:
    """The teacher's secret settings from this machine: none is sent to a Ray worker.

    Raises a SettingsError if one is of the wrong type.
    """
    teacher = _read_settings().teacher
    return {name: getattr(teacher, name) for name in SECRETS}


def read_data_secret() -> SecretStr:
    """The secret key of the sources' store, from this machine."""
    return _read_settings().data.s3_secret


def _read_settings() -> Settings:
    load_environment()
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(map(_explain, error.errors()))) from None


def _set_missing(values: dict[str, str]) -> None:
    """Sets the variables that are missing or empty."""
    os.environ.update({n: value for n, value in values.items() if value and not os.environ.get(n)})


def _read_secret_files() -> dict[str, str]:
    folder = Path(os.environ.get(_SECRETS_DIR, "/run/secrets"))
    if _SECRETS_DIR in os.environ and not folder.is_dir():
        raise SettingsError(f"{_SECRETS_DIR}={str(folder)!r} is not a folder")
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return {
        path.name.upper(): path.read_text("utf-8").strip()
        for path in files
        if path.name.upper().startswith((PREFIX, *_FOREIGN))
    }


def _explain(error: Any) -> str:
    place = [str(part) for part in error["loc"] if isinstance(part, str)]
    name = PREFIX + "__".join(place[:2]).upper() + "".join(f" {part!r}" for part in place[2:])
    has_secret = any(secret.upper() in name for secret in SECRETS) or "@" in str(error["input"])
    value = "" if has_secret else f"={error['input']!r}"
    reason = str(error["msg"]).removeprefix("Value error, ")
    if isinstance(error["input"], dict):  # of a whole section: the reason names the fields
        return reason
    return f"{name}{value}: {reason[0].lower()}{reason[1:]}"


def list_settings(sections: Sequence[str] = ()) -> Iterator[tuple[str, FieldInfo, str]]:
    """Variable name, field and section of every setting, or of those in some sections."""
    for name, field in Settings.model_fields.items():
        if sections and name not in sections:
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            for inner, inner_field in kind.model_fields.items():
                yield f"{PREFIX}{name}__{inner}".upper(), inner_field, name
        else:
            yield f"{PREFIX}{name}".upper(), field, ""


def describe_default(field: FieldInfo) -> str:
    """The default as an environment variable's value; empty if none."""
    value = field.default
    if field.default_factory is not None or value is None:
        return ""
    return ",".join(value) if isinstance(value, list) else str(value)


def describe_choices(field: FieldInfo) -> str:
    """The description, and the values of a Literal."""
    choices = [str(c) for c in get_args(field.annotation) if isinstance(c, str)]
    suffix = f" One of {', '.join(choices)}." if choices else ""
    return (field.description or "") + suffix
