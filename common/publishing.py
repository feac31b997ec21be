"""Publishes an adapter on the Hugging Face hub."""

import logging
import tempfile
from pathlib import Path

from common.errors import InputError
from common.manifest import require_manifest
from common.settings import Settings
from common.storage import RunStorage

log = logging.getLogger(__name__)


def push(settings: Settings, storage: RunStorage) -> None:
    """Publishes the adapter on the Hugging Face hub, as HF_TOKEN allows."""
    from huggingface_hub import HfApi

    adapter = require_manifest(storage, "adapter", "python -m jobs.train")
    name = str(settings.train.push_to)
    with tempfile.TemporaryDirectory() as folder:
        storage.download(adapter["files"], "adapter", Path(folder))
        try:
            HfApi().create_repo(name, private=True, exist_ok=True)
            HfApi().upload_folder(repo_id=name, folder_path=folder)
        except Exception as error:  # the hub's client has errors of many kinds
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"DISTILL_TRAIN__PUSH_TO={name!r}: {type(error).__name__}: {reason}; check the "
                "name and HF_TOKEN; the adapter itself is done"
            ) from None
    log.info("train: published as %s", name)
