"""What every connection to a teacher needs: its secrets, headers, certificates, and no proxy."""

import ipaddress
import os
import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from common.errors import InputError
from common.sections import BUILTIN, TeacherSettings

SHORTEST_IN_ANSWER = 12
"""A shorter secret may be a word: to redact it would change labels."""
_SHORTEST = 4
_REDACTED = "[secret]"
_DIGIT = re.compile(r"\d")
"""A part of a header without one is a word, such as Bearer or application/json."""


class Secrets:
    """The key and the extra headers' values, which some servers echo."""

    def __init__(self, settings: TeacherSettings) -> None:
        secrets = [settings.api_key.get_secret_value()]
        for value in settings.extra_headers.values():
            secrets += [part for part in value.get_secret_value().split() if _DIGIT.search(part)]
        self._patterns = [
            (len(secret), re.compile("".join(map(_match_character, secret))))
            for secret in secrets
            if len(secret) >= _SHORTEST
        ]

    def redact(self, text: str, shortest: int = _SHORTEST) -> str:
        """The text without the secrets that are not shorter."""
        for length, pattern in self._patterns:
            if length >= shortest:
                text = pattern.sub(_REDACTED, text)
        return text


def _match_character(character: str) -> str:
    """A pattern for a character as servers write it: plain, escaped in JSON, or in a URL."""
    code = f"{ord(character):02x}"
    codes = f"(?:{code}|{code.upper()})"
    forms = re.escape(character), rf"\\{re.escape(character)}", rf"\\u00{codes}", f"%{codes}"
    return character if character.isalnum() else f"(?:{'|'.join(forms)})"


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
