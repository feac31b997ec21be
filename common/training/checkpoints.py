"""Checkpoints on the run's storage, from which any machine can resume.

Each is a folder <root>/<run>/checkpoints/<update>, complete once its manifest is written. The
latest and the best stay until training ends.
"""

import json
import logging
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from common.errors import InputError
from common.run.manifest import (
    Fingerprint,
    check_same,
    read_manifest,
    remove_manifest,
    write_manifest,
)
from common.run.steps import is_manifest, name_checkpoint
from common.run.storage import RunStorage

FOLDER = "checkpoints"
_PICKLES = (".pt", ".pth", ".bin")
"""What torch writes: zip files, with a checksum for each part."""

log = logging.getLogger(__name__)


class DamagedCheckpointError(InputError):
    """A checkpoint cannot be read."""


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(self, storage: RunStorage, fingerprint: Fingerprint) -> None:
        self._storage, self._fingerprint = storage, fingerprint

    def save(self, local: Path, update: int, best: int) -> None:
        """Uploads a local folder; keeps only this checkpoint and that of update `best`."""
        step = name_checkpoint(update)
        if read_manifest(self._storage, step) is None:
            files = self._storage.upload(local, step.folder)
            write_manifest(self._storage, step, self._fingerprint, files=files)
        for old in self.list_updates():
            if old < update and old != best:
                self._remove(old)

    def list_updates(self) -> list[int]:
        """The updates with a complete checkpoint, ascending."""
        names = self._storage.list_files(FOLDER)
        return sorted({int(n.split("/")[1]) for n in names if is_manifest(n)})

    def load(self, update: int, local: Path) -> None:
        """Downloads a checkpoint. Raises an InputError if it is damaged or of another training."""
        step, place = name_checkpoint(update), f"{self._storage.url}/{FOLDER}"
        try:
            manifest = read_manifest(self._storage, step)
        except InputError as error:
            raise DamagedCheckpointError(str(error)) from None
        assert manifest is not None, step
        check_same(place, manifest.fingerprint, self._fingerprint)
        try:
            self._storage.download(manifest.files, step.folder, local)
            for file in local.rglob("*"):
                _check_file(file)
        except (FileNotFoundError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())[:200]
            raise DamagedCheckpointError(
                f"{self._storage.url}/{step.folder} is damaged ({reason}); delete {place}, and run "
                "again to train from the start"
            ) from None

    def load_latest(self, folder: Path) -> Path | None:
        """Downloads the latest checkpoint, if any, to a new folder in `folder`.

        A damaged one is removed if there is one before it; else the error is raised.
        """
        updates = self.list_updates()
        while updates:
            update = updates.pop()
            local = folder / f"checkpoint-{update}"
            try:
                self.load(update, local)
            except DamagedCheckpointError as error:
                if not updates:
                    raise
                log.warning("train: %s; going on from the one before", str(error).split(";")[0])
                self._remove(update)
            else:
                log.info("train: resuming after update %d", update)
                return local
        return None

    def remove_all(self) -> None:
        """Removes all checkpoints, complete or not."""
        for update in self.list_updates():
            self._remove(update)
        with self._storage.removing_empty_folder(FOLDER):
            self._storage.remove(*self._storage.list_files(FOLDER))

    def _remove(self, update: int) -> None:
        step = name_checkpoint(update)
        with self._storage.removing_empty_folder(step.folder):
            remove_manifest(self._storage, step)  # first: the rest is incomplete
            self._storage.remove(*self._storage.list_files(step.folder))


def _check_file(file: Path) -> None:
    """Raises a BadZipFile, SafetensorError or ValueError if a file's content is damaged."""
    if file.suffix == ".safetensors":
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                tensors.get_tensor(name)
    elif file.suffix in _PICKLES:
        with zipfile.ZipFile(file) as parts:
            if broken := parts.testzip():
                raise ValueError(f"{file.name}: {broken} has a wrong checksum")
    elif file.suffix == ".json":
        json.loads(file.read_text("utf-8"))
