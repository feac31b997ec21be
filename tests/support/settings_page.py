"""Writes the tables of settings into docs/settings.md: `make settings-table`."""

import itertools
from pathlib import Path

from common.environment import describe_choices, describe_default, list_settings


def make_table() -> str:
    """The settings in Markdown, a table for each section."""
    lines: list[str] = []
    for section, settings in itertools.groupby(list_settings(), key=lambda setting: setting[2]):
        lines += [f"\n## {section.capitalize() or 'Run'}", "", "| variable | default | meaning |"]
        lines.append("| --- | --- | --- |")
        for name, field, _ in settings:
            default = describe_default(field)
            shown = f"`{default}`" if default else ""
            lines.append(f"| `{name}` | {shown} | {describe_choices(field)} |")
    return "\n".join(lines)


def put_table(page: Path) -> None:
    """Replaces the text between a page's two `settings` marks by the tables."""
    start, end = "<!-- settings -->", "<!-- /settings -->"
    before, rest = page.read_text("utf-8").split(start)
    after = rest.split(end)[1]
    page.write_text(f"{before}{start}\n{make_table()}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    put_table(Path("docs/settings.md"))
