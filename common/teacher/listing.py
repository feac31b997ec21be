"""Reads the API's listing of models."""

import json
import re
from typing import Any

from common.teacher.api_errors import WRONG_SHAPE

_END = re.compile(r"(deprecat|expir|shut_?down|sunset|retire)", re.IGNORECASE)


def list_models(listing: str) -> list[str]:
    """The names of the models in a listing; none if it cannot be read."""
    try:
        return [str(entry["id"]) for entry in json.loads(listing)["data"]]
    except WRONG_SHAPE:
        return []


def find_end(listing: str, model: str) -> str | None:
    """What a listing says of a model's end, as `field value`; None if it says nothing.

    Mistral has `deprecation`, OpenRouter `expiration_date`; others are named alike.
    """
    try:
        entries: Any = json.loads(listing)["data"]
        entry = next(entry for entry in entries if entry["id"] == model)
        found = [(name, value) for name, value in entry.items() if _END.search(name) and value]
    except (*WRONG_SHAPE, StopIteration):
        return None
    name, value = found[0] if found else ("", "")
    return f"{name} {value}".strip()[:200] or None
