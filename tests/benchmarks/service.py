"""The quota's own speed: 64 workers on Ray share one keeper, and their calls take no time."""

import argparse
import asyncio
import time
from typing import Any

import psutil
import ray

from common.labels.lanes.ray.cluster import end_ray, start_ray
from common.labels.lanes.ray.keeper import QuotaKeeper
from common.quota.calls import Outcome
from common.quota.leases import Leases
from common.quota.protocol import Totals
from common.quota.quota import Quota
from tests.benchmarks.measure import print_table

_WORKERS, _IN_FLIGHT, _SECONDS = 64, 64, 10.0
_CALL_SECONDS = 0.1
_PER_MINUTE = 60e6
"""A limit that is kept, and does not hold."""


def measure_service(options: argparse.Namespace) -> dict[str, Any]:
    """Calls per second, and the share of a CPU that the keeper takes for them."""
    del options
    start_ray()
    try:
        quota = Quota(_PER_MINUTE, _PER_MINUTE * 1000, _WORKERS * _IN_FLIGHT)
        keeper = ray.remote(QuotaKeeper).options(num_cpus=0).remote(quota, 0)
        pid = ray.get(keeper.__ray_call__.remote(lambda _: psutil.Process().pid))
        calls, busy, seconds = asyncio.run(_work(keeper, psutil.Process(pid)))
    finally:
        end_ray(can_shut_down=True)
    figures = {
        "workers": _WORKERS,
        "calls/s": round(calls / seconds),
        "keeper's CPU": f"{busy / seconds:.0%}",
        "calls/s of a whole CPU": round(calls / busy),
    }
    print_table("The quota's service, with both limits and calls of 0.1 s", [figures])
    return figures


async def _work(keeper: Any, process: psutil.Process) -> tuple[int, float, float]:
    """Calls, the keeper's CPU seconds, and seconds; once all workers are at work."""

    async def renew(name: str, tally: Any) -> Any:
        return await keeper.renew.remote(name, tally)

    workers = [Leases(renew) for _ in range(_WORKERS)]
    ended, is_over = 0, False

    async def call(leases: Leases) -> None:
        nonlocal ended
        while not is_over:
            found = await leases.acquire(200)
            await asyncio.sleep(_CALL_SECONDS)
            totals = Totals(calls=1, answered=1, prompt_tokens=50, completion_tokens=20)
            leases.settle(found, Outcome(totals, 70.0))
            ended += 1

    async def beat() -> None:
        while not is_over:
            await keeper.snapshot.remote()
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(call(w)) for w in workers for _ in range(_IN_FLIGHT)]
    tasks.append(asyncio.create_task(beat()))
    await asyncio.sleep(3)
    calls, then, began = ended, time.monotonic(), process.cpu_times()
    await asyncio.sleep(_SECONDS)
    now = process.cpu_times()
    result = ended - calls, now.user + now.system - began.user - began.system
    seconds = time.monotonic() - then
    is_over = True
    await asyncio.gather(*tasks)
    for worker in workers:
        await worker.close()
    return *result, seconds
