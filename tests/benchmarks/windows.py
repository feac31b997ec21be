"""Quota, by the way in which the server counts: in virtual time, against a simulated server."""

import argparse
import itertools
from typing import Any

from tests.benchmarks.measure import print_table
from tests.support.simulation import Bucket, Log, Server, Window, run, work

_PER_MINUTE, _TOKENS_PER_CALL = 6_000, 100
_WAYS = {
    "bucket, burst 1 s": lambda rate: Bucket(rate, rate / 60),
    "fixed minutes": Window,
    "sliding 60 s": lambda rate: Log(rate, 60.0),
    "sliding 10 s": lambda rate: Log(rate, 10.0),
}
_SAYS = {
    "limit and headers": (True, True, float),
    "headers": (False, True, float),
    "limit and Retry-After": (True, False, float),
    "Retry-After": (False, False, float),
    "nothing": (False, False, lambda seconds: None),
}


def measure_windows(options: argparse.Namespace) -> dict[str, Any]:
    """By case, the time over the optimum and the share of 429s."""
    rows = []
    for kind, way, says in itertools.product(("requests", "tokens"), _WAYS, _SAYS):
        is_told, headers, retry_after = _SAYS[says]
        rate = _PER_MINUTE * (_TOKENS_PER_CALL if kind == "tokens" else 1)
        allowed = _WAYS[way](rate)
        server = Server(headers=headers, retry_after=retry_after, **{kind: allowed})
        told = [rate if is_told and kind == name else None for name in ("requests", "tokens")]
        # Twice what the server lets pass at once, and a minute's: its burst does not decide.
        calls = round(_PER_MINUTE + 2 * allowed.burst * _PER_MINUTE / rate)
        result = run(work(server, *told, calls=calls))
        if kind == "tokens":
            result.ratio *= calls / max(calls - allowed.burst / _TOKENS_PER_CALL, 1)
        rows.append(
            {
                "quota": f"{kind}, {way}",
                "known to the job": says,
                "wall / optimum": f"{result.ratio:.3f}",
                "429s": f"{result.throttled:.2%}",
            }
        )
    print_table(f"Quota by the server's way of counting, {_PER_MINUTE} calls/minute", rows)
    return {f"{row['quota']}: {row['known to the job']}": row for row in rows}
