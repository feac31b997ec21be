"""Measures the label job against a teacher on loopback: `make bench-label`.

    python -m tests.benchmarks.label                        all parts (about 45 minutes)
    python -m tests.benchmarks.label throughput --rounds 1
    python -m tests.benchmarks.label quota --cases '*-cluster'
    python -m tests.benchmarks.label memory --sizes 1000 10000

throughput  the job, bespokelabs-curator and the bare openai client, by turns
quota       wall time over the optimum, and the share of 429s, where the teacher has a quota
windows     the same by the way in which the server counts, in virtual time (half a minute)
memory      peak memory and time a row by number of rows, and a rerun of each finished run
            (how long resuming nothing takes: --sizes 100000 for that alone)
scale       what millions of rows cost the driver: --sizes 1000000 10000000
service     how many calls the quota of 64 workers on Ray can grant

Prints tables, and writes the raw figures to build/bench-label.json.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import (
    BUILD,
    ROOT,
)
from tests.benchmarks.memory import measure_memory
from tests.benchmarks.quota import measure_quota
from tests.benchmarks.scale import measure_scale
from tests.benchmarks.service import measure_service
from tests.benchmarks.throughput import SYSTEMS, measure_throughput
from tests.benchmarks.windows import measure_windows

PARTS = {
    "throughput": measure_throughput,
    "quota": measure_quota,
    "windows": measure_windows,
    "memory": measure_memory,
    "service": measure_service,
    "scale": measure_scale,
}


def main() -> None:
    options = parse_options()
    asked = {n: str(v) for n, v in vars(options).items() if n not in ("parts", "tree")}
    results: dict[str, Any] = {}
    path = BUILD / "bench-label.json"
    for part in options.parts:
        machine = describe_machine()
        figures = PARTS[part](options)
        results[part] = {"machine": machine, "options": asked, "figures": figures}
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps(known | results, indent=1) + "\n", "utf-8")
    print(f"\nraw figures: {path.relative_to(ROOT)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--rows", type=int, default=5_000, help="of throughput (5000)")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput (3)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS[:4])
    parser.add_argument("--quota-rows", type=int, default=2_400, help="of a quota case (2400)")
    parser.add_argument("--cases", default="*", help="pattern of quota cases, as in *-cluster")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[10_000, 100_000], help="of memory, scale"
    )
    parser.add_argument("--latency", type=float, default=0.1, help="seconds of a call (0.1)")
    parser.add_argument("--concurrency", type=int, default=256, help="calls in flight (256)")
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout to measure")
    options = parser.parse_args()
    options.parts = options.parts or list(PARTS)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options.tree = options.tree.resolve()
    return options


def describe_machine() -> dict[str, Any]:
    """What the figures depend on, without the machine's name."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("aiohttp", "openai", "pyarrow", "ray")},
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
