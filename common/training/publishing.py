"""Publishes the adapter on the Hugging Face hub."""

import logging
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from common.errors import DistillError, InputError
from common.hub import is_passing
from common.run.manifest import require_manifest
from common.run.run import Run
from common.run.steps import ADAPTER

log = logging.getLogger(__name__)


def push(run: Run) -> None:
    """Publishes the adapter, as HF_TOKEN allows, in a private repository if it makes one.

    Raises:
        InputError: the hub refuses.
        DistillError: it cannot be reached.
    """
    adapter = require_manifest(run.storage, ADAPTER)
    name = str(run.settings.train.push_to)
    with tempfile.TemporaryDirectory() as folder:
        run.storage.download(adapter.files, ADAPTER.folder, Path(folder))
        try:
            HfApi().create_repo(name, private=True, exist_ok=True)
            HfApi().upload_folder(repo_id=name, folder_path=folder)
        except Exception as error:  # the hub's client has errors of many kinds
            reason = " ".join(str(error).split())[:300]
            message = f"DISTILL_TRAIN__PUSH_TO={name!r}: {type(error).__name__}: {reason}"
            if is_passing(error):
                raise DistillError(f"{message}; run again when the hub can be reached") from None
            raise InputError(
                f"{message}; check the name and HF_TOKEN; the adapter itself is done"
            ) from None
    log.info("train: published as %s", name)
