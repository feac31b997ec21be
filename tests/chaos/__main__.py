"""Attacks the jobs with each fault, and prints what held: `make chaos`.

    make chaos ARGS="--jobs predict --faults sigterm kill"   faults whose names have these words
    make chaos ARGS="--root s3://bucket/prefix"   all runs in the store of the AWS_* variables
    python -m tests.chaos.moments --moments 20    one label job, killed 20 times

After each attack the job is run again to its end. Then each input has one result, no label has
changed, no more answers were paid for twice than were in flight, and weights, metrics and outputs
are those of a run that nothing has disturbed. No process is left, no file has the API's key, and
each end is told in one line. The exit code is 1 if anything of that does not hold.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.chaos.cell import Cell, Result
from tests.chaos.faults import Fault, make_faults
from tests.chaos.works import WORKS, Work
from tests.chaos.world import World, open_world

_AT_ONCE = 2
"""Jobs that are attacked at a time: each waits for most of it."""


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


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--jobs", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--faults", nargs="+", default=[], help="words of their names")
    parser.add_argument("--root", default="", help="an S3 URL for all runs; empty: on the disk")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the faults")
    options = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(_AT_ONCE, get_context("spawn")) as pool:
        chosen = [(options.faults, options.root, options.seed)] * len(options.jobs)
        columns = pool.map(attack_job, options.jobs, *zip(*chosen, strict=True))
        results = [result for column in columns for result in column]
    print(f"\n{format_matrix(results)}\n\n{time.monotonic() - began:.0f} s, seed {options.seed}")
    return int(any(result.problems for result in results))


if __name__ == "__main__":
    sys.exit(main())
