"""Manifests: written last into a step's folder, they say that the step is done, and of what.

The fingerprint is a dictionary of all that the step's result depends on. A step whose manifest has
the same fingerprint is done; a different one is an error that names what changed.
"""

import contextlib
import json
import logging
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from common.errors import InputError
from common.run.storage import RunStorage

Fingerprint = dict[str, Any]
_LOOK_SECONDS = 5.0
_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "ray", "openai")

log = logging.getLogger(__name__)


def read_manifest(storage: RunStorage, step: str) -> dict[str, Any] | None:
    """The manifest of a step (labels, adapter, predictions), or None while it is not done.

    Raises:
        InputError: it is damaged.
    """
    name = f"{step}/manifest.json"
    if not storage.exists(name):
        return None
    manifest = storage.read_json(name)
    if not isinstance(manifest, dict) or "fingerprint" not in manifest:
        raise InputError(f"{storage.url}/{name} is no manifest; delete {step} and make it again")
    return manifest


def require_manifest(storage: RunStorage, step: str, command: str) -> dict[str, Any]:
    """The manifest of a step that must be done; waits `storage.wait_seconds` for it.

    Raises:
        InputError: it is not.
    """
    deadline = time.monotonic() + storage.wait_seconds
    manifest = read_manifest(storage, step)
    if manifest is None and storage.wait_seconds:
        log.info("waiting for %s/%s, at most %g s", storage.url, step, storage.wait_seconds)
    while manifest is None and time.monotonic() < deadline:
        time.sleep(max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic())))
        manifest = read_manifest(storage, step)
    if manifest is None:
        raise InputError(
            f"{storage.url}/{step} is not finished: it has no manifest.json; run {command} first, "
            "with the same DISTILL_RUN and DISTILL_STORAGE__ROOT"
        )
    return manifest


def is_done(storage: RunStorage, step: str, fingerprint: Fingerprint) -> bool:
    """Whether the step was done with this fingerprint.

    Raises:
        InputError: it was done with another one.
    """
    manifest = read_manifest(storage, step)
    if manifest is not None:
        check_same(f"{storage.url}/{step}", manifest["fingerprint"], fingerprint)
    return manifest is not None


def check_same(place: str, before: Fingerprint, now: Fingerprint) -> None:
    """Raises an InputError that names the differences between two fingerprints."""
    now = json.loads(json.dumps(now))
    changed = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise InputError(
            f"{place} was made from something else: {'; '.join(changed)}; "
            "choose another DISTILL_RUN, or delete that folder to make it again"
        )


def check_part(place: str, manifest: dict[str, Any], now: Fingerprint) -> None:
    """The same for a part of a manifest's fingerprint."""
    before = manifest["fingerprint"]
    check_same(place, {key: before.get(key) for key in now}, now)


def write_manifest(
    storage: RunStorage, step: str, fingerprint: Fingerprint, **facts: Any
) -> dict[str, Any]:
    """Marks a step as done. `facts` are counts, figures, settings without secrets, file names."""
    manifest = {
        "step": step,
        "fingerprint": fingerprint,
        "code_version": code_version(),
        "versions": list_versions(),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **facts,
    }
    storage.write_json(f"{step}/manifest.json", manifest)
    return manifest


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
