"""The Hugging Face hub: what its errors mean, and publishing an adapter there."""

import logging
import tempfile
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError

from common.errors import DistillError, InputError
from common.manifest import require_manifest
from common.settings import Settings
from common.storage import RunStorage

log = logging.getLogger(__name__)


def is_passing(error: BaseException | None) -> bool:
    """Whether the hub was not reached, or was out of order: a later try may go better."""
    if error is None or is_offline_mode():
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    is_network = isinstance(error, httpx2.TransportError)
    return is_network or is_passing(error.__cause__ or error.__context__)


def push(settings: Settings, storage: RunStorage) -> None:
    """Publishes the adapter, as HF_TOKEN allows, in a private repository if it makes one.

    Raises:
        InputError: the hub refuses.
        DistillError: it cannot be reached.
    """
    adapter = require_manifest(storage, "adapter", "python -m jobs.train")
    name = str(settings.train.push_to)
    with tempfile.TemporaryDirectory() as folder:
        storage.download(adapter["files"], "adapter", Path(folder))
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
