"""A run as one value: what a job opens at its start and hands on."""

from dataclasses import dataclass, replace

from pydantic import SecretStr

from common.prices.prices import Price, find_price
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.model import Task, load_task


@dataclass(frozen=True)
class Run:
    """Settings, task and storage of a run.

    Attributes:
        price: the teacher's; None where it is unknown, and in jobs that call no teacher.
    """

    settings: Settings
    task: Task
    storage: RunStorage
    price: Price | None = None

    def with_key(self, key: SecretStr) -> "Run":
        """The same run with a key for the teacher."""
        teacher = self.settings.teacher.model_copy(update={"api_key": key})
        return replace(self, settings=self.settings.model_copy(update={"teacher": teacher}))

    def pack(self) -> "PackedRun":
        """What another process or machine needs to open the same run."""
        return PackedRun(self.settings.for_workers(), self.task, self.price)


@dataclass(frozen=True)
class PackedRun:
    """A run on its way to a worker: without secrets, and not opened.

    Ray keeps what it hands to actors where others can read it.
    """

    settings: Settings
    task: Task
    price: Price | None

    def open(self) -> Run:
        """Opens the run on this machine."""
        return Run(self.settings, self.task, RunStorage(self.settings), self.price)


def open_run(settings: Settings, with_price: bool = False) -> Run:
    """Opens a run; jobs that call the teacher ask for its price, too.

    Raises:
        SettingsError: there is no such built-in task.
        InputError: the storage root, the task file or the price file cannot be used.
    """
    storage = RunStorage(settings)
    price = find_price(settings.teacher) if with_price else None
    return Run(settings, load_task(settings.task), storage, price)
