"""A run as one value: what a job opens at its start and hands on."""

from dataclasses import dataclass
from functools import cached_property

from pydantic import SecretStr

from common.prices.prices import Price, find_price
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.model import Task, load_task


@dataclass(frozen=True)
class Run:
    """Settings, task and storage of a run."""

    settings: Settings
    task: Task
    storage: RunStorage

    @cached_property
    def price(self) -> Price | None:
        """The teacher's; None where it is unknown. Its file is read once, by who first asks.

        Raises:
            InputError: the price file cannot be used.
        """
        return find_price(self.settings.teacher)

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

    def open(self, api_key: SecretStr) -> Run:
        """Opens the run on this machine, with its own key for the teacher."""
        teacher = self.settings.teacher.model_copy(update={"api_key": api_key})
        settings = self.settings.model_copy(update={"teacher": teacher})
        run = Run(settings, self.task, RunStorage(settings))
        vars(run)["price"] = self.price  # this machine may lack the price file
        return run


def open_run(settings: Settings) -> Run:
    """Opens a run.

    Raises:
        SettingsError: there is no such built-in task.
        InputError: the storage root or the task file cannot be used.
    """
    storage = RunStorage(settings)
    return Run(settings, load_task(settings.task), storage)
