"""Runs a job as a user does: as a command, with settings in the environment."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start_job(job: str, folder: Path, *arguments: str, **settings: object) -> subprocess.Popen[str]:
    """`settings` are named without DISTILL_; `folder` is the working folder and holds the runs."""
    inherited = ("PATH", "HOME", "TMPDIR", "LANG", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in inherited if name in os.environ}
    environment |= {n: v for n, v in os.environ.items() if n.startswith("AWS_")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment["DISTILL_STORAGE__ROOT"] = str(folder / "runs")
    environment |= {f"DISTILL_{name}": str(value) for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", f"jobs.{job}", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_job(
    job: str, folder: Path, *arguments: str, **settings: object
) -> subprocess.CompletedProcess[str]:
    """`start_job`, to its end."""
    with start_job(job, folder, *arguments, **settings) as process:
        try:
            output, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
