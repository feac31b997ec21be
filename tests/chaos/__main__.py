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

from tests.chaos.matrix import attack_job, format_matrix
from tests.chaos.works import WORKS

_AT_ONCE = 2
"""Jobs that are attacked at a time: each waits for most of it."""


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
