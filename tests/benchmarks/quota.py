"""Quota: how close the job comes to the optimum, and how often it is refused."""

import argparse
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.job import check, inherit, label, make_folder
from tests.benchmarks.measure import (
    ROOT,
    print_table,
    read_timing,
    running_server,
)
from tests.benchmarks.server import ServerSettings

_TOKENS_PER_CALL = ServerSettings.prompt_tokens + ServerSettings.completion_tokens


@dataclass(frozen=True)
class QuotaCase:
    """A quota of the server, and what the job knows of it."""

    kind: str
    """requests or tokens."""
    told: str
    """truth, or wrong: five times as much."""
    headers: bool = True
    actors: int = 2
    nodes: int = 1

    @property
    def name(self) -> str:
        parts = [self.kind, self.told, "headers" if self.headers else "bare"]
        parts += [f"{self.actors}-actors"] * (self.actors != 2) + ["cluster"] * (self.nodes > 1)
        return "-".join(parts)


QUOTA_CASES = [
    *(
        QuotaCase(kind, told, headers)
        for kind in ("requests", "tokens")
        for told in ("truth", "wrong")
        for headers in (True, False)
    ),
    QuotaCase("requests", "wrong", headers=False, actors=4),
    QuotaCase("tokens", "wrong", headers=False, actors=4),
    QuotaCase("requests", "wrong", headers=False, nodes=2),
]
_RPM, _BURST = 1_200, 20
_QUOTA_CONCURRENCY = 64


def measure_quota(options: argparse.Namespace) -> dict[str, Any]:
    """By case, wall time over the optimum and the share of 429s."""
    cases = [case for case in QUOTA_CASES if fnmatch.fnmatch(case.name, options.cases)]
    figures: dict[str, Any] = {}
    rows = []
    for case in cases:
        figure = figures[case.name] = measure_case(case, options)
        rows.append(
            {
                "case": case.name,
                "wall s": f"{figure['steady_seconds']:.1f}",
                "optimum s": f"{figure['optimum_seconds']:.1f}",
                "wall / optimum": f"{figure['over_optimum']:.3f}",
                "429s": f"{figure['refused_share']:.2%}",
                "most in flight": figure["most_in_flight"],
            }
        )
        print(rows[-1], flush=True)
    if rows:
        print_table(f"Quota: {options.quota_rows} rows, {_RPM} requests/minute or as many", rows)
    return figures


def measure_case(case: QuotaCase, options: argparse.Namespace) -> dict[str, Any]:
    per_call = _TOKENS_PER_CALL if case.kind == "tokens" else 1
    quota, burst = _RPM * per_call, _BURST * per_call
    limit = {"requests": "burst", "tokens": "token_burst"}[case.kind]
    settings = ServerSettings(
        latency=options.latency,
        headers=case.headers,
        **{f"{case.kind}_per_minute": quota, limit: burst},
    )
    known = quota * (5 if case.told == "wrong" else 1)
    nodes = running_cluster(options) if case.nodes > 1 else nullcontext({})
    with running_server(settings) as teacher, nodes as address:
        run = label(
            make_folder("quota"),
            teacher,
            options.quota_rows,
            options,
            environment=address,
            LABEL__ACTORS=case.actors,
            TEACHER__MAX_CONCURRENCY=_QUOTA_CONCURRENCY,
            **{f"TEACHER__{case.kind.upper()}_PER_MINUTE": known},
        )
        check(run, case.name)
        stats = teacher.read_stats()
    timing = read_timing(stats, run)
    optimum = max(
        (options.quota_rows - _BURST) / _RPM * 60,  # the same for both kinds, by `per_call`
        options.quota_rows * options.latency / _QUOTA_CONCURRENCY,
    )
    return {
        **asdict(case),
        **timing,
        "calls": stats["calls"],
        "outcomes": stats["outcomes"],
        "optimum_seconds": optimum,
        "over_optimum": timing["steady_seconds"] / optimum,
        "refused_share": stats["outcomes"].get("rate_limit", 0) / stats["calls"],
    }


@contextmanager
def running_cluster(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Two nodes of one CPU; the environment that leads a job there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.two_nodes"],
        cwd=ROOT,
        env=inherit() | {"PYTHONPATH": str(options.tree)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        lines = (line.split() for line in process.stdout)
        address = next(words[1] for words in lines if words[:1] == ["address"])
        yield {"RAY_ADDRESS": address}
        process.communicate("")
