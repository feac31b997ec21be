"""What every connection to a teacher needs: its secrets, headers, certificates, and no proxy."""

import ipaddress
import json
import os
import ssl
from pathlib import Path
from urllib.parse import quote, urlsplit

from common.errors import InputError
from common.settings import BUILTIN, TeacherSettings

SHORTEST_IN_ANSWER = 12
"""A shorter secret may be a word: to redact it would change labels."""
_SHORTEST = 4
_REDACTED = "[secret]"


class Secrets:
    """The key and the extra headers' values, which some servers echo."""

    def __init__(self, settings: TeacherSettings) -> None:
        values = (settings.api_key, *settings.extra_headers.values())
        secrets = [value.get_secret_value() for value in values]
        self._forms = [
            (len(secret), form)
            for secret in secrets
            if len(secret) >= _SHORTEST
            for form in dict.fromkeys((secret, json.dumps(secret)[1:-1], quote(secret, safe="")))
        ]

    def redact(self, text: str, shortest: int = _SHORTEST) -> str:
        """The text without the secrets that are not shorter."""
        for length, form in self._forms:
            if length >= shortest:
                text = text.replace(form, _REDACTED)
        return text


def make_headers(settings: TeacherSettings) -> dict[str, str]:
    """The settings' headers; without a key, and with others, there is no Authorization."""
    own = {name: value.get_secret_value() for name, value in settings.extra_headers.items()}
    key = settings.api_key.get_secret_value()
    return own if own and not key else {"Authorization": f"Bearer {key or 'none'}", **own}


def is_local(settings: TeacherSettings, url: str) -> bool:
    """Whether the teacher is on loopback, or is the stand-in: no proxy reaches it."""
    host = urlsplit(url).hostname or ""
    try:
        return settings.base_url == BUILTIN or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def find_certificates() -> ssl.SSLContext | bool:
    """The certificates that a variable names, also for loopback; else the system's.

    Raises an InputError if they cannot be read.
    """
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        if path := os.environ.get(name):
            try:
                if Path(path).is_dir():
                    return ssl.create_default_context(capath=path)
                return ssl.create_default_context(cafile=path)
            except OSError as error:
                raise InputError(
                    f"{name}={path!r} cannot be read ({error.strerror or error}); correct the path"
                ) from None
    return True
