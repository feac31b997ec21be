"""What the errors of the Hugging Face hub's client mean."""

import httpx2
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError


def is_passing(error: BaseException | None) -> bool:
    """Whether the hub was not reached, or was out of order: a later try may go better."""
    if error is None or is_offline_mode():
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    is_network = isinstance(error, httpx2.TransportError)
    return is_network or is_passing(error.__cause__ or error.__context__)
