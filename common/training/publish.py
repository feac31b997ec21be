"""The adapter and its exports on the Hugging Face hub."""

import logging
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from common.errors import DistillError, InputError
from common.hub import is_transient
from common.run.manifest import list_changes, read_manifest, require_manifest
from common.run.run import Run
from common.run.steps import ADAPTER, GGUF, MERGED, PREDICTIONS
from common.training.model_card import render_figures

CARD = "README.md"
_METRICS_FILE = "metrics.json"

log = logging.getLogger(__name__)


def push(run: Run) -> None:
    """Publishes the adapter on the hub, with its exports in folders.

    The repository is private if it is new. The card has the evaluation's figures, if there are any.

    Raises:
        InputError: the hub refuses.
        DistillError: it cannot be reached.
    """
    name = str(run.settings.train.push_to)
    with tempfile.TemporaryDirectory() as folder:
        gather(run, Path(folder))
        try:
            HfApi().create_repo(name, private=True, exist_ok=True)
            HfApi().upload_folder(repo_id=name, folder_path=folder)
        except Exception as error:  # the client raises many types
            reason = " ".join(str(error).split())[:300]
            message = f"DISTILL_TRAIN__PUSH_TO={name!r}: {type(error).__name__}: {reason}"
            if is_transient(error):
                raise DistillError(f"{message}; run again when the hub can be reached") from None
            raise InputError(
                f"{message}; check the name and HF_TOKEN; the adapter itself is done"
            ) from None
    log.info("train: published as %s", name)


def gather(run: Run, folder: Path) -> None:
    """Makes a folder of what is published: the adapter, `merged`, `gguf`, and the card."""
    storage, adapter = run.storage, require_manifest(run.storage, ADAPTER)
    storage.download(adapter.files, ADAPTER.folder, folder)
    for step in (MERGED, GGUF):
        made = read_manifest(storage, step)
        if made and not list_changes(made.fingerprint, adapter.fingerprint):
            storage.download(made.files, step.folder, folder / step.folder)
    scored = read_manifest(storage, PREDICTIONS)
    if scored and scored.fingerprint.get("adapter") == adapter.identity:
        card = folder / CARD
        text = card.read_text("utf-8") + render_figures(storage.read_json(_METRICS_FILE))
        card.write_text(text, "utf-8")
