"""Errors of the Hugging Face hub's client."""

import httpx2
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError


def is_transient(error: BaseException | None) -> bool:
    """Whether a retry may help: the network failed, or the hub answered 429 or 5xx."""
    if error is None or is_offline_mode():
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    is_network = isinstance(error, httpx2.TransportError)
    return is_network or is_transient(error.__cause__ or error.__context__)
