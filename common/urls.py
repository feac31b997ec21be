"""The places that settings name: paths and URLs."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def tidy_location(given: str) -> str:
    """A path with its home folder, or an object store's URL without empty parts.

    Raises a ValueError if it is a mistyped URL, or has a password.
    """
    if found := re.match(r"([a-z][a-z0-9]+):/(?!/)(.+)", given):
        raise ValueError(f"is no URL; write {found[1]}://{found[2]}")
    if given.startswith("~"):
        return str(Path(given).expanduser())
    scheme, is_url, path = given.partition("://")
    if is_url and "@" in path.partition("/")[0]:
        raise ValueError("should hold no user or password")
    return f"{scheme}{is_url}{re.sub('/{2,}', '/', path)}" if scheme in ("s3", "s3a") else given


Location = Annotated[str, AfterValidator(tidy_location)]
