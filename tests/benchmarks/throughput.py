"""Throughput: the same requests to the same kind of server, system after system, by turns."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.job import check, inherit, label, make_folder, write_requests
from tests.benchmarks.measure import (
    BUILD,
    ROOT,
    describe_spread,
    print_table,
    read_timing,
    run_command,
    running_server,
)
from tests.benchmarks.server import ServerSettings

CURATOR = BUILD / "bench-curator"
SYSTEMS = ("distill", "curator", "openai create", "openai post", "openai raw")
"""What is after openai is the way that its client is used, see `clients.py`."""


def measure_throughput(options: argparse.Namespace) -> dict[str, Any]:
    """By system, the figures of each round."""
    requests = write_requests(options.rows)
    if "curator" in options.systems:
        install_curator()
    figures: dict[str, list[dict[str, float]]] = {system: [] for system in options.systems}
    for number in range(options.rounds):
        shift = number % len(options.systems)
        for system in (*options.systems[shift:], *options.systems[:shift]):
            figures[system].append(measure_system(system, requests, options))
            rate = figures[system][-1]["rate"]
            print(f"round {number + 1}, {system}: {rate:.0f} rows/s", flush=True)
    names = {"rate": "rows/s", "middle_rate": "middle 80 %", "startup_seconds": "start-up s"}
    names |= {"steady_seconds": "steady s", "end_seconds": "end s", "wall_seconds": "wall s"}
    print_table(
        f"Throughput: {options.rows} rows, {options.latency:g} s a call, "
        f"{options.concurrency} in flight; median (least – greatest) of {options.rounds}",
        [
            {"system": system}
            | {
                title: describe_spread([run[name] for run in runs], int("seconds" in name))
                for name, title in names.items()
            }
            for system, runs in figures.items()
        ],
    )
    others = [system for system in figures if system != "distill"]
    if "distill" in figures and others:
        print_table(
            "Times the rate of the other in the same round",
            [
                {"distill over": other, "rows/s": divide(figures, other, "rate")}
                | {"middle 80 %": divide(figures, other, "middle_rate")}
                for other in others
            ],
        )
    return figures


def divide(figures: dict[str, list[dict[str, float]]], other: str, name: str) -> str:
    """The job's figure over another system's, round by round."""
    pairs = zip(figures["distill"], figures[other], strict=True)
    return describe_spread([ours[name] / theirs[name] for ours, theirs in pairs], 2)


def measure_system(system: str, requests: Path, options: argparse.Namespace) -> dict[str, float]:
    """One run of one system, with a server of its own."""
    folder = make_folder("throughput")
    with running_server(ServerSettings(latency=options.latency)) as teacher:
        arguments = [teacher.url, requests, str(options.concurrency)]
        if system == "distill":
            concurrency = {"TEACHER__MAX_CONCURRENCY": options.concurrency}
            run = label(folder, teacher, options.rows, options, **concurrency)
        elif system == "curator":
            script = ROOT / "tests/benchmarks/curator_client.py"
            python = CURATOR / "bin/python"
            run = run_command([python, script, *arguments, folder], folder, inherit())
        else:
            command = [sys.executable, "-m", "tests.benchmarks.clients", *arguments]
            environment = inherit() | {"PYTHONPATH": str(ROOT)}
            run = run_command([*command, system.split()[1]], folder, environment)
        check(run, system)
        stats = teacher.read_stats()
    assert stats["outcomes"] == {"ok": options.rows}, stats["outcomes"]
    assert stats["asked_times"] == {"1": options.rows}, stats["asked_times"]
    return read_timing(stats, run)


def install_curator() -> None:
    """Once, into an environment of its own: its pins are not ours."""
    if (CURATOR / "done").exists():
        return
    print("installing bespokelabs-curator (a minute or two, once)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", CURATOR], check=True)
    pip = [CURATOR / "bin/python", "-m", "pip", "install", "--quiet", "bespokelabs-curator"]
    subprocess.run(pip, check=True)
    (CURATOR / "done").touch()
