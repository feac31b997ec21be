"""What sections of settings are made of: their base class, and the types of their fields."""

import json
import re
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from common.urls import check_line

_SECRET_PARAMETER = re.compile(r"(^|&)[^=&]*(key|token|secret|password|sig)[^=&]*=", re.IGNORECASE)
MOST_CHARACTERS = 4096
"""Of a setting; a path cannot be longer."""
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
"""A file system's names have at most 255 bytes; a sweep appends the student's to a run's."""

Count = Annotated[int, Field(ge=0, le=10**9)]
Amount = Annotated[float, Field(ge=0, le=1e9)]
"""Of seconds, dollars and the like. What is larger overflows somewhere below."""


def split_names(names: str | list[str]) -> list[str]:
    """Names that commas separate."""
    if isinstance(names, list):
        return names
    return [name.strip() for name in names.split(",") if name.strip()]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        str_strip_whitespace=True,
        str_max_length=MOST_CHARACTERS,
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _check_characters(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name != "text_prefix":  # which may end in a line break
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    check_line(text)
        return value


def parse_json(given: Any) -> Any:
    """A setting that is written as JSON."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"should be a JSON object: {error}") from None


def check_url(url: str, place_of_key: str) -> str:
    """An API's URL without its last slash."""
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
        raise ValueError("should be an http(s) URL such as http://localhost:8000/v1")
    parts = urlsplit(url)
    parts.port  # noqa: B018 - raises a ValueError if it is none
    if "@" in parts.netloc or _SECRET_PARAMETER.search(parts.query):
        raise ValueError(f"should hold no user, password or key; {place_of_key}")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment=""))
