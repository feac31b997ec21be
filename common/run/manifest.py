"""A step's manifest, written last: it marks the step as done and names its inputs.

The fingerprint is a dictionary of everything that the step's result depends on, without settings at
their default. A step is done if its manifest has the same fingerprint; a different one is an error
that names the changes.
"""

import contextlib
import json
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, TypeVar, cast

from common.errors import InputError
from common.records import hash_content
from common.run.steps import Step
from common.run.storage import RunStorage
from common.settings import find_default

Fingerprint = Mapping[str, Any]
S = TypeVar("S")
_POLL_SECONDS = 5.0
_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "ray", "openai")

_LATER = {"student.frame"}
"""What the fingerprints of older versions lack: there, it may have been the same."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest(Generic[S]):
    """The record of a finished step.

    Attributes:
        fingerprint: what its result depends on.
        files: the files that it wrote, relative to the run.
        counts: rows by kind.
        settings: by section, without secrets.
        scored: for predictions, what metrics.json holds, by kind.
        code_version: the version of this project.
        versions: of Python and of the libraries that results may depend on.
        finished_at: in UTC.
    """

    step: str
    fingerprint: Fingerprint
    summary: S = field(default_factory=lambda: cast(Any, {}))
    files: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    scored: dict[str, list[str]] = field(default_factory=dict)
    code_version: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    finished_at: str = ""

    @property
    def identity(self) -> str:
        """A hash of this result; the same settings may give another one, later."""
        return hash_content([self.fingerprint, self.finished_at])

    def get_settings(self, section: str) -> dict[str, Any]:
        """The settings of a section; empty if it has none."""
        found = self.settings.get(section)
        return found if isinstance(found, dict) else {}

    def to_json(self) -> dict[str, Any]:
        """The content of _manifest.json."""
        return {n: value for n, value in asdict(self).items() if value or n == "fingerprint"}


def read_manifest(storage: RunStorage, step: Step[S]) -> Manifest[S] | None:
    """The manifest of a step, or None if it is not done; unknown fields are ignored.

    Raises:
        InputError: it is damaged.
    """
    name = next(filter(storage.exists, (step.manifest, step.old_manifest)), None)
    if name is None:
        return None
    manifest: Manifest[S] = storage.read_json(name, Manifest[step.summary])  # type: ignore[name-defined]
    return manifest


def require_manifest(storage: RunStorage, step: Step[S]) -> Manifest[S]:
    """The manifest of a step, once it is done; an InputError after `storage.wait_seconds`."""
    deadline = time.monotonic() + storage.wait_seconds
    manifest = read_manifest(storage, step)
    if manifest is None and storage.wait_seconds:
        log.info("waiting for %s/%s, at most %g s", storage.url, step.folder, storage.wait_seconds)
    while manifest is None and time.monotonic() < deadline:
        time.sleep(max(0.0, min(_POLL_SECONDS, deadline - time.monotonic())))
        manifest = read_manifest(storage, step)
    if manifest is None:
        raise InputError(
            f"{storage.url}/{step.folder} is not finished: it has no _manifest.json; run "
            f"{step.command} first, with the same DISTILL_RUN and DISTILL_STORAGE__ROOT"
        )
    return manifest


def is_done(storage: RunStorage, step: Step[Any], fingerprint: Fingerprint) -> bool:
    """Whether the step is done. Raises an InputError if it was done with another fingerprint."""
    if manifest := read_manifest(storage, step):
        check_same(f"{storage.url}/{step.folder}", manifest.fingerprint, fingerprint)
    return manifest is not None


def list_changes(before: Fingerprint, now: Fingerprint) -> list[str]:
    """The differences between two fingerprints; a setting that one lacks has its default there."""
    now = json.loads(json.dumps(now))
    unknown = {key for key in _LATER if key not in before}
    values = [
        (key, *(side.get(key, find_default(key)) for side in (before, now)))
        for key in sorted({*before, *now} - unknown)
    ]
    return [f"{key} was {old!r} and is {new!r}" for key, old, new in values if old != new]


def check_same(
    place: str,
    before: Fingerprint,
    now: Fingerprint,
    ignoring: tuple[str, ...] = (),
    variable: str = "DISTILL_RUN",
) -> None:
    """Raises an InputError if two fingerprints differ in keys without one of these prefixes.

    `variable` is the setting of which another value gives another place.
    """
    parts = [{k: v for k, v in f.items() if not k.startswith(ignoring)} for f in (before, now)]
    if changes := list_changes(*parts):
        raise InputError(
            f"{place} was made from something else: {'; '.join(changes)}; "
            f"choose another {variable}, or delete that folder to make it again"
        )


def write_manifest(
    storage: RunStorage,
    step: Step[S],
    fingerprint: Fingerprint,
    summary: S | None = None,
    **facts: Any,
) -> Manifest[S]:
    """Marks a step as done; `facts` are `files`, `counts`, `settings` and `scored`."""
    manifest: Manifest[Any] = Manifest(
        step.folder,
        fingerprint,
        summary or {},
        code_version=code_version(),
        versions=list_versions(),
        finished_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **facts,
    )
    storage.write_json(step.manifest, manifest.to_json())
    return manifest


def remove_manifest(storage: RunStorage, step: Step[Any]) -> None:
    """Marks a step as not done."""
    storage.remove(step.old_manifest, step.manifest)


def list_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results may depend on."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def code_version() -> str:
    """The version of this project."""
    try:
        return version("distill")
    except PackageNotFoundError:
        return "not installed"
