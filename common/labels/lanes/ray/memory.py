"""The memory of Ray's processes: whether it is used up, and which limit to raise."""

import re

import psutil
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory

from common.errors import DistillError, SettingsError

_SIGN = re.compile(r"running low on memory|address the out of memory issue|OutOfMemoryError")
_FIGURES = re.compile(r"([\d.]+)GB used / ([\d.]+)GB limit")
_NEARLY_FULL = 0.9
"""Ray kills a process at 95 %."""


class MemoryWatch:
    """Remembers the most memory that was in use on this machine."""

    def __init__(self, setting: str) -> None:
        """`setting` names the variable that decides how many processes there are."""
        self._setting, self._most = setting, 0.0

    def look(self) -> None:
        """Measures it."""
        self._most = max(self._most, get_used_memory())

    def explain(self, error: object = None) -> DistillError | None:
        """Why processes have died, by Ray's error or by what was measured; None if not for memory.

        A SettingsError where a container's limit is used up: another try would end alike.
        """
        text, limit = str(error or ""), float(get_system_memory())
        if not (_SIGN.search(text) or self._most > _NEARLY_FULL * limit):
            return None
        used = self._most
        if found := _FIGURES.search(text):
            used, limit = (float(number) * 2**30 for number in found.groups())
        what = f"Ray's processes were killed, as the memory is used up ({_tell(used, limit)})"
        if limit > 0.98 * psutil.virtual_memory().total:
            return DistillError(f"{what}; free memory or lower {self._setting}, and run again")
        return SettingsError(
            f"{what}; raise the container's limit (of a pod: resources.limits.memory), or lower "
            f"{self._setting}"
        )


def _tell(used: float, limit: float) -> str:
    return f"{used / 2**30:.2f} of {limit / 2**30:.2f} GiB"
