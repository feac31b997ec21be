"""Reads the settings from the environment, and describes them.

Precedence: the environment, `.env` in the working folder, secret files (one value a file, named
like the variable, in /run/secrets or $DISTILL_SECRETS_DIR), the defaults in `common.settings`. The
same places may set variables of other software: OPENAI_API_KEY, OPENAI_BASE_URL, AWS_*, HF_*,
RAY_ADDRESS.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from common.errors import SettingsError, shorten, show
from common.fields import Section
from common.sections import SECRETS
from common.settings import PREFIX, Settings

_FOREIGN = ("OPENAI_", "AWS_", "HF_", "RAY_ADDRESS", "RAY_AUTH_")
_SECRETS_DIR = "DISTILL_SECRETS_DIR"
_SECRET = re.compile(
    r"@|(key|token|secret|password|authorization|sig)[^=:]{0,20}[=:]", re.IGNORECASE
)
"""A value with a user and password, or with a parameter that may be a key."""


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


def read_key(variable: str) -> SecretStr:
    """The key that a variable of the user's own holds. Raises a SettingsError if it is not set."""
    load_environment()
    key = os.environ.get(variable, "").strip()
    if not key:
        raise SettingsError(f"the variable {variable} is not set; it should hold the API's key")
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"the variable {variable} should hold one line of ASCII characters")
    return SecretStr(key)


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
    given = str(error["input"])
    has_secret = any(secret.upper() in name.upper() for secret in SECRETS)
    if error["type"] == "extra_forbidden" or _SECRET.search(f"{' '.join(place[2:])}={given}"):
        has_secret = True  # what is unknown, or cannot be parsed, may be a key
    reason = shorten(str(error["msg"]).removeprefix("Value error, "))
    is_group = isinstance(error["input"], dict)
    if is_group and len(place) < 3:  # the reason names the fields
        return reason
    value = "" if has_secret or is_group else f"={show(error['input'])}"
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
