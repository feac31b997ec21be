"""Distils a real skill into a real student on the CPU: `make run-real`.

The task is the sentiment of product reviews, the teacher is people, the student is SmolLM2-135M.
Whatever is set in the environment wins, such as DISTILL_DATA__TRAIN_LIMIT.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress

from tests.benchmarks.measure import ROOT
from tests.real.reviews import FOLDER, Review, find_student, load_reviews
from tests.real.teacher import MODEL

PORT = 8977
"""A fixed one: the teacher's address is part of what a run is made from."""


def write_data(reviews: list[Review]) -> None:
    """The splits as JSON lines; only test rows have their reference."""
    folder = FOLDER / "reviews"
    folder.mkdir(parents=True, exist_ok=True)
    train = [{"text": review.text} for review in reviews if not review.is_test]
    test = [{"text": r.text, "reference": r.reference} for r in reviews if r.is_test]
    for name, rows in (("train", train), ("test", test)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")


def main() -> int:
    """The pipeline's exit code."""
    write_data(load_reviews())
    settings = {
        "DISTILL_RUN": "real",
        "DISTILL_TASK": str(ROOT / "tests/real/reviews.toml"),
        "DISTILL_DATA__SOURCE": str(FOLDER / "reviews"),
        "DISTILL_DATA__TRAIN_LIMIT": "2000",
        "DISTILL_TEACHER__MODEL": MODEL,
        "DISTILL_STUDENT__MODEL": str(find_student()),
        "DISTILL_EVALUATE__MAX_NEW_TOKENS": "8",
    }
    command = [sys.executable, "-m", "tests.real.teacher", "--port", str(PORT)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the pipeline
    ) as teacher:
        assert teacher.stdin is not None and teacher.stdout is not None
        url = teacher.stdout.readline().strip()
        if not url:
            print(f"error: the teacher cannot serve on port {PORT}", file=sys.stderr)
            return 1
        own = settings | {"DISTILL_TEACHER__BASE_URL": url} | os.environ
        with subprocess.Popen([sys.executable, "-m", "jobs.pipeline"], env=own) as pipeline:
            while pipeline.returncode is None:
                with suppress(KeyboardInterrupt):  # the pipeline has it, too, and saves its work
                    pipeline.wait()
        teacher.stdin.close()
        return pipeline.returncode


if __name__ == "__main__":
    sys.exit(main())
