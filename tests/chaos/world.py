"""What all attacks share: a teacher, an S3 server, and one undisturbed run of each job."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common.run.storage import RunStorage
from tests.chaos.ledger import load_own_settings
from tests.chaos.processes import Started
from tests.chaos.teachers import answer_rightly
from tests.chaos.works import make_settings
from tests.support.commands import start_job
from tests.support.failing_store import finding_s3, make_bucket, running_s3
from tests.support.fake_teacher import FakeTeacher, running_teacher

STEPS = ("label", "train", "evaluate", "predict")
"""In the order in which one run does them."""
_LIMIT_SECONDS = 180.0


class World:
    """`root` is an S3 URL for all runs, or empty: on the disk.

    Attributes:
        folder: what all attacks write, in folders of their own.
        settings: those of all jobs.
    """

    def __init__(self, folder: Path, teacher: FakeTeacher, root: str = "") -> None:
        self.folder, self.teacher, self.root = folder, teacher, root
        self.settings = make_settings(folder, teacher)
        self._s3 = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self._servers = ExitStack()
        self._bucket = root
        self._done: list[str] = []
        self._cells = 0

    def make_folder(self) -> Path:
        """A folder for one attack. Its name is short: sockets of Ray stand below it."""
        self._cells += 1
        folder = self.folder / str(self._cells)
        folder.mkdir()
        return folder

    def find_s3(self) -> tuple[str, dict[str, str]]:
        """A URL in S3 that no other world has, and the variables of its server.

        It is a mock unless the runs are in a real one.
        """
        if not self._bucket:
            self._s3 = self._servers.enter_context(running_s3())
            self._bucket = make_bucket(self._s3)
        return f"{self._bucket}/{self.folder.name}", self._s3

    def close(self) -> None:
        self._servers.close()

    def open_storage(self, root: str | Path, run: str = "default") -> RunStorage:
        """A run's storage; that in S3 without what may fail before it."""
        settings = load_own_settings({"STORAGE__ROOT": root, "RUN": run})
        if "://" not in str(root):
            return RunStorage(settings)
        with finding_s3(self.find_s3()[1]):
            return RunStorage(settings)

    def open_undisturbed(self, step: str) -> RunStorage:
        """The run after a step that nothing has disturbed."""
        while step not in self._done:
            self._do(STEPS[len(self._done)])
        return self.open_storage(self.folder / "undisturbed", step)

    def copy_undisturbed(self, step: str, storage: RunStorage) -> None:
        """Copies the same to another storage."""
        whole = self.open_undisturbed(step)
        for name in whole.list_files(""):
            storage.write_bytes(name, whole.read_bytes(name))

    def _do(self, step: str) -> None:
        began = time.monotonic()
        self.teacher.answer, self.teacher.seconds = answer_rightly, 0.0
        folder = self.folder / "undisturbed"
        folder.mkdir(exist_ok=True)
        started = Started(start_job(step, folder, **self.settings))
        code, log, problems = started.end(_LIMIT_SECONDS)
        if code or problems:
            raise RuntimeError(f"undisturbed, the {step} job ends with {code}: {log} {problems}")
        shutil.copytree(folder / "runs/default", folder / step)
        self._done.append(step)
        print(f"undisturbed: {step}, {time.monotonic() - began:.0f} s", flush=True)


@contextmanager
def open_world(root: str = "") -> Iterator[World]:
    """A world in a new folder, which is removed at the end, with its teacher."""
    # Not the folder of a test, whose name is too long for the sockets of Ray.
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp") as name,
        running_teacher(answer_rightly) as teacher,
    ):
        world = World(Path(name), teacher, root)
        try:
            yield world
        finally:
            world.close()
