"""Ollama's Modelfile: the student with its frame, decoded greedily."""

import re
from collections.abc import Iterable

from common.student.frame import Frame
from common.student.prompt import quote

MODELFILE = "Modelfile"
_LAST = (
    '{{ $last := "" }}{{ range .Messages }}{{ if eq .Role "user" }}{{ $last = .Content }}{{ end }}'
    "{{ end }}"
)
_TEXT = '''FROM ./{file}
TEMPLATE """{template}"""
PARAMETER temperature 0
PARAMETER repeat_penalty 1
PARAMETER num_predict {limit}
'''


def render_modelfile(file: str, frame: Frame, stops: Iterable[str], max_new_tokens: int) -> str:
    """A Modelfile beside a GGUF file; `stops` end an answer.

    Ollama's templates cannot strip whitespace as some chat templates do.
    """
    template = f"{_LAST}{_escape(frame.start)}{{{{ $last }}}}{_escape(frame.end)}"
    text = _TEXT.format(file=file, template=template, limit=max_new_tokens)
    return text + "".join(f"PARAMETER stop {quote(stop)}\n" for stop in stops)


def _escape(text: str) -> str:
    """Text in a Go template between three quotes: quotes and braces become string literals."""
    return re.sub(r'["{]+', lambda found: f"{{{{ {quote(found[0])} }}}}", text)
