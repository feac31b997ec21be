"""Docker's command line."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE, S3_IMAGE = "distill:test", "distill-s3:test"
HARDENED = (
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges:true",
    "--shm-size=1g",
    "--env=OMP_NUM_THREADS=1",
)
"""As the manifests and the compose file run the image; with one thread, for tests share cores."""

SMALL = {
    "DISTILL_DATA__SOURCE": "builtin",
    "DISTILL_STUDENT__MODEL": "builtin",
    "DISTILL_DATA__TRAIN_LIMIT": "200",
    "DISTILL_DATA__TEST_LIMIT": "40",
    "DISTILL_TRAIN__EPOCHS": "1",
    "DISTILL_EVALUATE__MAX_NEW_TOKENS": "32",
}
"""A workflow of a minute or two, but for its teacher."""


def docker(
    *arguments: str, cwd: Path | None = None, check: bool = True, seconds: int = 1800
) -> str:
    """What a docker command prints; its error output, too, where it may fail."""
    done = subprocess.run(
        ["docker", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if check else subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert not check or done.returncode == 0, f"{arguments}: {done.stderr}\n{done.stdout}"
    return done.stdout.strip()


def give(settings: dict[str, str]) -> list[str]:
    """Settings as arguments of `docker run`."""
    return [f"--env={name}={value}" for name, value in settings.items()]
