"""The places that settings name: paths and URLs."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Line breaks and others, and marks that turn the direction of what follows."""


def check_line(given: str) -> str:
    """Raises a ValueError if a name or place holds control characters."""
    if found := _CONTROL.search(given):
        raise ValueError(f"holds the control character {found[0]!a}")
    return given


def tidy_location(given: str) -> str:
    """A path with its home folder, or an object store's URL without empty parts.

    Raises a ValueError if it is a mistyped URL, has a password or control characters.
    """
    check_line(given)
    if re.match(r"\w+:/{1,2}[^/]*@", given):
        raise ValueError("should hold no user or password")
    if found := re.match(r"([a-z][a-z0-9]+):/(?!/)(.+)", given):
        raise ValueError(f"is no URL; write {found[1]}://{found[2]}")
    if given.startswith("~"):
        try:
            return str(Path(given).expanduser())
        except RuntimeError:
            raise ValueError("there is no user of this name; write the whole path") from None
    scheme, is_url, path = given.partition("://")
    return f"{scheme}{is_url}{re.sub('/{2,}', '/', path)}" if scheme in ("s3", "s3a") else given


Location = Annotated[str, AfterValidator(tidy_location)]
