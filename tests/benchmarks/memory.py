"""Memory: of all processes of the job together, at several sizes; and reruns."""

import argparse
from typing import Any

from tests.benchmarks.job import check, label, make_folder
from tests.benchmarks.measure import (
    print_table,
    read_timing,
    running_server,
)
from tests.benchmarks.server import ServerSettings


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """By number of rows, peak memory, time a row, and how long the rerun of the finished run took.

    RSS counts what processes share once for each; the proportional set size (PSS) counts it once.
    """
    figures: dict[str, Any] = {}
    for size in options.sizes:
        folder = make_folder("memory")
        concurrency = {"TEACHER__MAX_CONCURRENCY": options.concurrency}
        with running_server(ServerSettings(latency=options.latency)) as teacher:
            run = label(folder, teacher, size, options, sample=True, **concurrency)
            check(run, f"{size} rows")
            stats = teacher.read_stats()
            again = label(folder, teacher, size, options, sample=True, **concurrency)
            check(again, f"rerun of {size} rows")
            assert teacher.read_stats()["calls"] == stats["calls"], "the rerun asked again"
        timing = read_timing(stats, run)
        figures[str(size)] = timing | {
            "milliseconds_per_row": 1_000 * timing["steady_seconds"] / size,
            "peak_rss": run.peak_rss,
            "peak_pss": run.peak_pss,
            "rerun_seconds": again.seconds,
            "rerun_peak_rss": again.peak_rss,
        }
    least = figures[str(min(options.sizes))]
    print_table(
        "Memory of all processes, and time, by rows",
        [
            {
                "rows": size,
                "peak RSS MiB": f"{figure['peak_rss'] / 2**20:.0f}",
                "of the least": f"{figure['peak_rss'] / least['peak_rss']:.2f}",
                "peak PSS MiB": f"{figure['peak_pss'] / 2**20:.0f}",
                "ms a row": f"{figure['milliseconds_per_row']:.2f}",
                "wall s": f"{figure['wall_seconds']:.1f}",
                "rerun s": f"{figure['rerun_seconds']:.1f}",
            }
            for size, figure in figures.items()
        ],
    )
    return figures
