"""The normal form of a text."""

import unicodedata

_QUOTES = str.maketrans("’‘“”„«»", '\'\'"""""')


def normalize(text: str) -> str:
    """The text in NFKC, with straight quotes and single spaces; keeps case."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).split())
