"""Shows labels beside their texts, for a look at a new prompt or new label rules."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

from common.records import LabelRow

_NARROWEST = 16
_GAP = "  "
_MOST_LINES = 12


def format_preview(rows: Sequence[LabelRow], width: int | None = None) -> str:
    """The rows as columns of text, answer and label, each with its verdict.

    `width` is in characters; None: the terminal's.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    column = max(_NARROWEST, (width - 2 * len(_GAP)) // 3)
    lines = [_join(("TEXT", "ANSWER", "LABEL"), column)]
    for number, row in enumerate(rows, 1):
        lines += ["", f"-- {number}: {_judge(row)}"]
        cells = [_wrap(cell or "", column) for cell in (row.text, row.response, row.label)]
        lines += [_join(parts, column) for parts in zip_longest(*cells, fillvalue="")]
    counts = Counter(row.status for row in rows)
    lines += ["", ", ".join(f"{counts[name]} {name}" for name in ("ok", "failed", "filtered"))]
    return "\n".join(lines)


def _judge(row: LabelRow) -> str:
    if row.status == "ok":
        return "ok" + (f", {row.agreement:.0%} of {row.samples} samples" if row.samples > 1 else "")
    reason = f"{row.error}: {row.message}" if row.message else row.error
    return f"{row.status} ({reason})"


def _wrap(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, width, drop_whitespace=False) or [""]
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], "…"]


def _join(parts: Sequence[str], width: int) -> str:
    return _GAP.join(part.strip().ljust(width) for part in parts).rstrip()
