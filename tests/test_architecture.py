"""The house: imports run downwards, and what is heavy stays where it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"jobs"},
    {"report", "outputs"},
    {"evaluation"},
    {"labels", "training"},
    {"teacher", "student"},
    {"data", "quota"},
    {"run"},
    {"tasks"},
    {"metrics", "prices", "builtin"},
    {"command"},
    {"arrivals", "environment", "signals", "records", "hub", "torch_environment"},
    {"settings"},
    {"sections"},
    {"errors", "urls"},
]
"""From the top down; rooms of one floor do not import each other."""


def list_modules() -> list[Path]:
    return sorted(
        p.relative_to(ROOT) for top in ("jobs", "common") for p in (ROOT / top).rglob("*.py")
    )


def list_imports(path: Path) -> Iterator[str]:
    """The project's modules that a module imports anywhere in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [node.module, *(n for n in names if (ROOT / n.replace(".", "/")).exists())]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def find_room(module: str) -> str | None:
    """`common.labels.session` is in `labels`, `jobs.label` in `jobs`; others are not ours."""
    top, _, rest = module.partition(".")
    return top if top == "jobs" else rest.split(".")[0] if top == "common" and rest else None


def list_arrows() -> set[tuple[str, str, str]]:
    """Module, its room, and a room that it imports from."""
    arrows = set()
    for path in list_modules():
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        room = find_room(module)
        for imported in list_imports(path):
            other = find_room(imported)
            if room and other and other != room:
                arrows.add((module, room, other))
    return arrows


def test_no_import_runs_upwards():
    floors = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    arrows = list_arrows()
    assert {room for _, *rooms in arrows for room in rooms} == floors.keys()
    upwards = [f"{m} imports {other}" for m, room, other in arrows if floors[other] <= floors[room]]
    assert not upwards


def test_no_folders_import_each_other_in_a_circle():
    """Also no folder within a room, such as labels/lanes."""
    graph: dict[str, set[str]] = {}
    for path in list_modules():
        folder = ".".join(path.parent.parts)
        for imported in list_imports(path):
            if find_room(imported) and imported not in ("common", "jobs"):
                is_folder = (ROOT / imported.replace(".", "/")).is_dir()
                other = imported if is_folder else imported.rpartition(".")[0]
                if other not in (folder, "common"):
                    graph.setdefault(folder, set()).add(other)
    graph.pop("common", None)  # the ground files, which stand side by side
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"folders import each other: {error.args[1]}")


@pytest.mark.parametrize(
    ("job", "heavy"),
    [
        ("label", ("torch", "transformers", "ray", "peft")),
        ("train", ("ray", "openai")),
        ("report", ("torch", "transformers", "ray", "openai")),
    ],
)
def test_a_job_does_not_import_what_is_heavy_and_not_its_own(job, heavy):
    code = f"import sys, jobs.{job}; print(*(m for m in {heavy} if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


LONG_FILES = {
    "common/sections.py": 560,  # a list of fields
    "common/quota/quota.py": 400,  # one object, whose state is private to it
    "common/quota/leases.py": 325,  # likewise
}


def test_functions_and_files_can_be_read_at_a_sitting():
    long = []
    for path in list_modules():
        text = (ROOT / path).read_text("utf-8")
        if text.count("\n") > LONG_FILES.get(str(path), 300):
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path}: {node.name}"] * (lines > 50)
    assert not long
