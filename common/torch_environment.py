"""The environment of torch's libraries on CPUs, which they read as they are loaded.

So this comes before any import of torch. What the user has set stays.
"""

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

_SPINS = "3000"
"""For how long a thread spins before it sleeps, while it waits for another one.

OpenMP's own 300,000 turns, milliseconds, are lost where the other thread does not run: beside busy
processes they cost 98 % of the speed. See tests/benchmarks/RESULTS.md.
"""
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""oneDNN's kernels, one for each shape of a product, that it and torch keep.

The 1,024 of their defaults grow to gigabytes, since nearly every batch has a length of its own.
"""


def prepare_torch(
    environment: MutableMapping[str, str], cgroups: Path = Path("/sys/fs/cgroup")
) -> None:
    """Sets threads by the container's CPU limit, a short wait between them, and small caches."""
    allowed = len(os.sched_getaffinity(0))
    quota = min(_read_quotas(cgroups), default=float(allowed))
    if quota < allowed:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, round(quota))))
    if not any(name in environment for name in _WAITING):
        environment["GOMP_SPINCOUNT"] = _SPINS
    for name, size in _CACHES.items():
        environment.setdefault(name, size)


def _read_quotas(cgroups: Path) -> Iterator[float]:
    """The CPUs that each cgroup of this process may use, of versions 1 and 2."""
    for path in _list_own(Path("/proc/self/cgroup")):
        for folder in (path, *path.parents):
            limit = _read(cgroups / folder / "cpu.max").split()
            if len(limit) == 2 and limit[0].isdigit():
                yield int(limit[0]) / int(limit[1])
            for name in ("cpu", "cpu,cpuacct"):
                quota = _read(cgroups / name / folder / "cpu.cfs_quota_us").strip()
                period = _read(cgroups / name / folder / "cpu.cfs_period_us").strip()
                if quota.isdigit() and period.isdigit():
                    yield int(quota) / int(period)


def _list_own(file: Path) -> Iterator[Path]:
    """The paths of this process below the cgroups' folder; in a container, often just that."""
    yield Path()
    for line in _read(file).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            yield Path(path.lstrip("/"))


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""
