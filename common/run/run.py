"""A run: its settings, task, storage and price."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from common.prices.prices import Price, find_price
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.task import Task, load_task


@dataclass(frozen=True)
class Run:
    """An open run."""

    settings: Settings
    task: Task
    storage: RunStorage

    @cached_property
    def price(self) -> Price | None:
        """The teacher's price, None if unknown. Raises an InputError if its file is unusable."""
        return find_price(self.settings.teacher)

    def pack(self) -> "PackedRun":
        """The run to send to a worker."""
        return PackedRun(self.settings.for_workers(), self.task, self.price)


@dataclass(frozen=True)
class PackedRun:
    """A run to send to a worker, without secrets: others can read what Ray sends."""

    settings: Settings
    task: Task
    price: Price | None

    def open(self, secrets: dict[str, Any]) -> Run:
        """Opens the run on this machine, with its own secrets for the teacher."""
        teacher = self.settings.teacher.model_copy(update=secrets)
        settings = self.settings.model_copy(update={"teacher": teacher})
        run = Run(settings, self.task, RunStorage(settings))
        vars(run)["price"] = self.price  # this machine may lack the price file
        return run


def open_run(settings: Settings) -> Run:
    """Opens a run.

    Raises:
        SettingsError: no built-in task has this name.
        InputError: the storage root or the task file cannot be used.
    """
    storage = RunStorage(settings)
    return Run(settings, load_task(settings.task), storage)
