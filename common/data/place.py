"""Where a split is: the setting that names it, its URL, and how its storage is opened."""

from dataclasses import dataclass, field
from typing import Any

from fsspec.core import url_to_fs

from common.errors import InputError
from common.sections import DataSettings
from common.settings import Settings

INPUTS = "inputs"
"""What the predict job reads, in place of a split: all files, if they are not of the hub."""


@dataclass(frozen=True)
class Place:
    """A source.

    Attributes:
        variable: the setting that names it.
        url: a path, a URL, or a data set's name on the hub.
        is_for_test: whether it is for the test rows alone.
        storage_options: fsspec's, where the object store has keys of its own.
    """

    variable: str
    url: str
    is_for_test: bool
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_remote(self) -> bool:
        """Whether every node can read it with its own environment."""
        return self.url.startswith(("s3://", "s3a://")) and "key" not in self.storage_options

    def open(self) -> tuple[Any, str]:
        """Its file system, and its path there."""
        return url_to_fs(self.url, **self.storage_options)  # type: ignore[no-any-return]

    def refuse(self, reason: str) -> InputError:
        """The error that the source is not as it should be."""
        return InputError(f"{self.variable}: {self.url!r} {reason}")


def find_place(settings: Settings, split: str) -> Place:
    """The source of a split, or of the predict job's `INPUTS`."""
    data = settings.data
    if split == INPUTS:
        name, url, is_for_test = "DISTILL_PREDICT__SOURCE", settings.predict.source, False
    elif split == "test" and data.test_source is not None:
        name, url, is_for_test = "DISTILL_DATA__TEST_SOURCE", data.test_source, True
    else:
        name, url, is_for_test = "DISTILL_DATA__SOURCE", data.source, False
    is_s3 = url.startswith(("s3://", "s3a://"))
    return Place(name, url, is_for_test, _make_options(data) if is_s3 else {})


def _make_options(data: DataSettings) -> dict[str, Any]:
    """The options of s3fs; empty: as the environment says."""
    options: dict[str, Any] = {"anon": True} if data.s3_anonymous else {}
    if data.s3_key:
        options |= {"key": data.s3_key, "secret": data.s3_secret.get_secret_value()}
    if data.s3_endpoint_url:
        options["endpoint_url"] = data.s3_endpoint_url
    return options
