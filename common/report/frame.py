"""The frame of a page: its head, its style, its content security policy, and tables."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.report.tables import Cell, Table

_FOLDER = Path(__file__).parent


def render_frame(title: str, body: str, parts: Mapping[str, str]) -> str:
    """A page of a template's body, whose comments such as <!--run--> become parts.

    A page with answers, the part `answers`, has the script that shows them, and no other.
    """
    script = read_template("js") if "answers" in parts else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    frame = {
        "title": html.escape(title),
        "style": read_template("css"),
        "policy": f"'sha256-{digest}'" if script else "'none'",
        "body": _fill(read_template(body), parts),
        "script": f"<script>{script}</script>" if script else "",
    }
    return _fill(read_template("html"), frame)


def _fill(template: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"<!--(\w+)-->", lambda match: parts[match[1]], template)


def read_template(kind: str) -> str:
    """A file of this folder: template.<kind>."""
    return (_FOLDER / f"template.{kind}").read_text("utf-8")


def embed(content: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def render_section(title: str, content: str) -> str:
    """A section with its heading; nothing without content."""
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def render_table(table: Table) -> str:
    """A table as HTML."""
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in table.head)
    rows = "".join(
        f'<tr><th scope="row">{_render_cell(first)}</th>'
        + "".join(f"<td>{_render_cell(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide"><table>{body}</table></div>'


def _render_cell(cell: Cell) -> str:
    note = f"<small>{html.escape(cell.note)}</small>" if cell.note else ""
    return html.escape(cell.text) + note
