"""The student's frame: what a server puts around a plain text, so that it is the prompt.

`encode_prompt` makes tokens. A server has a template and a tokenizer of its own; the frame is the
text that gives the same tokens there. Special tokens of the frame, BOS too, are written out, so
that servers add none.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.student.prompt import encode_prompt, quote, write_prompt
from common.tasks.task import Task

TASK_TEMPLATE = "task.jinja"
"""The file with the chat template that has the task's prompt."""
_PROBES = ("a text", "Two  words,\nand 3,5 more", 'é “x” 😀 {{ y }} """')
_STRIP = {(True, True): ".strip()", (True, False): ".lstrip()", (False, True): ".rstrip()"}
_JINJA = """\
{{%- set last = namespace(text="") -%}}
{{%- for message in messages -%}}
  {{%- if message["role"] == "user" -%}}{{%- set last.text = message["content"] -%}}{{%- endif -%}}
{{%- endfor -%}}
{{{{- {start} + last.text{strip} + {end} -}}}}
"""

log = logging.getLogger(__name__)

Encode = Callable[[str], list[int]]
"""The tokens of a text, with special tokens where they are written, and none added."""


@dataclass(frozen=True)
class Frame:
    """What stands before and after the text; `strip` is Jinja's method for what is cut off it."""

    start: str
    end: str
    strip: str = ""

    def fill(self, text: str) -> str:
        """The prompt for a text without surrounding whitespace."""
        return self.start + text + self.end

    def to_jinja(self) -> str:
        """A chat template that puts the frame around the last message of the user."""
        return _JINJA.format(start=quote(self.start), strip=self.strip, end=quote(self.end))


def find_frame(
    tokenizer: PreTrainedTokenizerBase, task: Task, encode: Encode | None = None
) -> Frame | None:
    """The frame for a server that encodes as `encode` does, by default as the tokenizer does.

    None if no text gives the tokens of the prompt, as where the chat template changes the text.
    """

    def encode_as_trained(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    def keeps(text: str) -> bool:
        return write_prompt(tokenizer, task, text) == whole.replace(mark, text)

    mark = "TEXT"
    while mark in write_prompt(tokenizer, task, ""):
        mark += "X"
    whole = write_prompt(tokenizer, task, mark)
    start, found, end = whole.partition(mark)
    if not found or mark in end:
        return None
    strip = _STRIP.get((not keeps(f" {mark}"), not keeps(f"{mark} ")), "")
    for begin in _list_starts(tokenizer, start):
        frame = Frame(begin, end, strip)
        if all(
            (encode or encode_as_trained)(frame.fill(text)) == encode_prompt(tokenizer, task, text)
            for text in _PROBES
        ):
            return frame
    return None


def _list_starts(tokenizer: PreTrainedTokenizerBase, start: str) -> list[str]:
    """The start, and the same with a space, which tokenizers put before some texts themselves."""
    bos = tokenizer.bos_token or ""
    head = bos if start.startswith(bos) else ""
    return [start, f"{head} {start.removeprefix(head)}"]


def write_task_template(folder: Path, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """Writes task.jinja, for servers that encode as the tokenizer does."""
    if frame := find_frame(tokenizer, task):
        (folder / TASK_TEMPLATE).write_text(frame.to_jinja(), "utf-8")
    else:
        log.warning("no %s: the student's chat template changes the text", TASK_TEMPLATE)
