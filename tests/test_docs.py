"""What README.md, CONTRIBUTING.md and docs/ name is there."""

import re
from pathlib import Path

import pytest

from common.environment import list_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


def find_anchors(page: Path) -> set[str]:
    """The places in a page that a link may name, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in find_anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_are_named_as_they_are(page):
    known = {name for name, _, _ in list_settings()} | {"DISTILL_SECRETS_DIR"}
    assert set(re.findall(r"\bDISTILL_[A-Z_]*[A-Z]\b", page.read_text("utf-8"))) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_there(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    text = page.read_text("utf-8")
    assert set(re.findall(r"\bmake ([a-z][a-z0-9-]*)(?=[`:]|  | [A-Z]+=)", text)) <= set(targets)
    for module in re.findall(r"python -m ((?:jobs|tests)\.[\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rooms_and_files_are_there(page):
    """`common/tasks/gec.toml`, or short `quota/leases`; <name> and {a,b} stand for any."""
    rooms = {path.name for path in (ROOT / "common").iterdir() if path.is_dir()}
    for path in re.findall(r"`([a-z_]+/[\w./]+)`", page.read_text("utf-8")):
        top, _, rest = path.partition("/")
        is_of_a_run = re.match(r"labels/(part|manifest)|predictions/", path)
        if top == "common" or (top in rooms and rest and not is_of_a_run):
            place = ROOT / (path if top == "common" else f"common/{path}")
            assert place.exists() or place.with_suffix(".py").exists(), path
