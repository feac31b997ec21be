"""The matrix of jobs and faults: its cells, and how they are printed."""

from tests.chaos.cell import Cell, Result
from tests.chaos.faults import Fault, make_faults
from tests.chaos.works import WORKS, Work
from tests.chaos.world import World, open_world


def attack(world: World, work: Work, fault: Fault, seed: int) -> Result:
    """One cell of the matrix."""
    if excuse := fault.excuse(work):
        return Result(work.name, fault.name, excuse=excuse)
    return Cell(world, work, fault, seed).run()


def attack_job(job: str, words: list[str], root: str, seed: int) -> list[Result]:
    """A column of the matrix, in a world of its own; prints each cell."""
    results = []
    with open_world(root) as world:
        for fault in choose_faults(words):
            result = attack(world, WORKS[job], fault, seed)
            results.append(result)
            note = f": {result.note}" if result.note else ""
            lines = [f"{job}, {fault.name}: {format_cell(result)}{note}"]
            lines += [f"  PROBLEM: {problem}" for problem in result.problems]
            print("\n".join(lines), flush=True)
    return results


def format_cell(result: Result) -> str:
    """What a cell of the matrix says."""
    if result.excuse:
        return f"n.a.: {result.excuse}"
    return f"{'FAILED' if result.problems else 'ok'} {result.seconds:.0f} s"


def format_matrix(results: list[Result]) -> str:
    """A row for each fault, a column for each job, as a table of Markdown."""
    jobs = list(dict.fromkeys(result.job for result in results))
    cells = {(result.fault, result.job): format_cell(result) for result in results}
    rows = [["fault", *jobs], ["---"] * (1 + len(jobs))]
    for fault in dict.fromkeys(result.fault for result in results):
        rows.append([fault, *(cells.get((fault, job), "") for job in jobs)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "| " + " | ".join(text.ljust(n) for text, n in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def choose_faults(words: list[str]) -> list[Fault]:
    """The faults whose names have one of the words; all without words."""
    faults = make_faults()
    return [
        f for name, f in faults.items() if any(w.lower() in name.lower() for w in words or [""])
    ]
