"""Checkpoints on the run's storage, from which any machine can resume.

Each is a folder <root>/<run>/checkpoints/<update>, complete once its manifest is written. The
latest and the best stay until training ends.
"""

import logging
from pathlib import Path

from common.run.manifest import Fingerprint, check_same, read_manifest, write_manifest
from common.run.steps import name_checkpoint
from common.run.storage import RunStorage

FOLDER = "checkpoints"

log = logging.getLogger(__name__)


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
        return sorted(int(n.split("/")[1]) for n in names if n.endswith("/manifest.json"))

    def load(self, update: int, local: Path) -> None:
        """Downloads a checkpoint. Raises an InputError if it is damaged or of another training."""
        step = name_checkpoint(update)
        manifest = read_manifest(self._storage, step)
        assert manifest is not None, step
        check_same(f"{self._storage.url}/{FOLDER}", manifest.fingerprint, self._fingerprint)
        self._storage.download(manifest.files, step.folder, local)

    def load_latest(self, folder: Path) -> Path | None:
        """Downloads the latest checkpoint, if any, to a new folder in `folder`."""
        updates = self.list_updates()
        if not updates:
            return None
        local = folder / f"checkpoint-{updates[-1]}"
        self.load(updates[-1], local)
        log.info("train: resuming after update %d", updates[-1])
        return local

    def remove_all(self) -> None:
        """Removes all checkpoints, complete or not."""
        for update in self.list_updates():
            self._remove(update)
        with self._storage.removing_empty_folder(FOLDER):
            self._storage.remove(*self._storage.list_files(FOLDER))

    def _remove(self, update: int) -> None:
        step = name_checkpoint(update).folder
        with self._storage.removing_empty_folder(step):
            self._storage.remove(f"{step}/manifest.json")  # first: the rest is incomplete
            self._storage.remove(*self._storage.list_files(step))
