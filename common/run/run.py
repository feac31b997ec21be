"""A run: its settings, task, storage and price."""

from dataclasses import dataclass, replace

from pydantic import SecretStr

from common.prices.prices import Price, find_price
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.model import Task, load_task


@dataclass(frozen=True)
class Run:
    """An open run; `price` is None if unknown, and in jobs that do not call the teacher."""

    settings: Settings
    task: Task
    storage: RunStorage
    price: Price | None = None

    def with_key(self, key: SecretStr) -> "Run":
        """The same run with an API key for the teacher."""
        teacher = self.settings.teacher.model_copy(update={"api_key": key})
        return replace(self, settings=self.settings.model_copy(update={"teacher": teacher}))

    def pack(self) -> "PackedRun":
        """The run to send to a worker."""
        return PackedRun(self.settings.for_workers(), self.task, self.price)


@dataclass(frozen=True)
class PackedRun:
    """A run to send to a worker, without secrets: others can read what Ray sends."""

    settings: Settings
    task: Task
    price: Price | None

    def open(self) -> Run:
        """Opens the run on this machine."""
        return Run(self.settings, self.task, RunStorage(self.settings), self.price)


def open_run(settings: Settings, with_price: bool = False) -> Run:
    """Opens a run, `with_price` for jobs that call the teacher.

    Raises:
        SettingsError: no built-in task has this name.
        InputError: the storage root, the task file or the price file cannot be used.
    """
    storage = RunStorage(settings)
    price = find_price(settings.teacher) if with_price else None
    return Run(settings, load_task(settings.task), storage, price)
