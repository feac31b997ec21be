"""Detects a text's language, if it is certain."""

from functools import lru_cache
from threading import Lock
from typing import Any

_CODES = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu
ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is
it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne
nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta
te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu
"""
LANGUAGES = frozenset(_CODES.split())
"""The ISO 639 codes of the languages that py3langid detects."""
_MIN_CHARACTERS = 20
_MIN_CONFIDENCE = 0.8
_LOADING = Lock()


def detect_language(text: str, languages: tuple[str, ...]) -> str | None:
    """The text's language, None if uncertain."""
    if len(text) < _MIN_CHARACTERS:
        return None
    language, confidence = load_detector(languages).classify(text)
    return str(language) if confidence >= _MIN_CONFIDENCE else None


def load_detector(languages: tuple[str, ...]) -> Any:
    """The model for these languages, loaded once in half a second; safe in threads."""
    with _LOADING:
        return _load(languages)


@lru_cache
def _load(languages: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    detector.set_languages(languages)
    return detector
