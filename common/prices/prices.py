"""Prices in dollars per million tokens: from the user's file, else from the package genai-prices.

An entry of a file, [[price]], has `model`, `input`, `output`, and optionally `cached_input` and
`cache_write` (default: `input`), `batch_input` and `batch_output` for the batch lane (default:
half), and `host`, the host name in the base URL, where * matches anything.
"""

import json
import re
import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import fsspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import InputError, SettingsError, shorten, show
from common.sections import TeacherSettings

BATCH = "batch"
"""The price of the batch lane, as a service tier."""
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_FORMAT = (
    "an entry begins with [[price]] and has model, input, output, and optionally cached_input, "
    "cache_write, batch_input, batch_output and host; a price is a number of dollars per million "
    "tokens"
)


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens.

    Attributes:
        cached_input: of prompt tokens that the provider's cache held.
        cache_write: of prompt tokens that it took in; None: as `input`.
        longer: the prices of calls with more prompt tokens than a number, by number.
        tiers: the prices of service tiers, by name, which a reply names; `batch` is the batch lane.
    """

    input: float
    output: float
    cached_input: float
    cache_write: float | None = None
    longer: tuple[tuple[int, "Price"], ...] = ()
    tiers: tuple[tuple[str, "Price"], ...] = ()

    def cost(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        written_tokens: int = 0,
        tier: str = "",
    ) -> float:
        """Dollars for a call; cached and written tokens are parts of `prompt_tokens`."""
        rates = self._find_rates(prompt_tokens, tier)
        written = rates.input if rates.cache_write is None else rates.cache_write
        prompt = max(0, prompt_tokens - cached_tokens - written_tokens) * rates.input
        prompt += cached_tokens * rates.cached_input + written_tokens * written
        return (prompt + completion_tokens * rates.output) / 1e6

    def worst_cost(self, prompt_tokens: int, max_tokens: int, tier: str = "") -> float:
        """The maximum dollars for a call with at most these tokens, in its tier or the standard."""
        costs = []
        for rates in (self._find_rates(prompt_tokens), self._find_rates(prompt_tokens, tier)):
            prompt_price = max(rates.input, rates.cached_input, rates.cache_write or 0.0)
            costs.append((prompt_tokens * prompt_price + max_tokens * rates.output) / 1e6)
        return costs[1] if tier == BATCH else max(costs)

    def _find_rates(self, prompt_tokens: int, tier: str = "") -> "Price":
        rates = dict(self.tiers).get(tier, self)
        fitting = [price for start, price in rates.longer if prompt_tokens > start]
        return fitting[-1] if fitting else rates


def find_price(settings: TeacherSettings) -> Price | None:
    """The teacher's price; None if unknown, as for a server of your own.

    In a file, the model's exact name precedes its family (gpt-4o for gpt-4o-2024-08-06), the user's
    file the built-in one, and an entry for the host one for any host.

    Raises:
        InputError: the file `teacher.prices` cannot be read or is not valid.
    """
    host = urlsplit(settings.base_url).hostname or settings.base_url
    own = _read_entries(settings.prices) if settings.prices else []
    for name in (settings.model, _SNAPSHOT.sub("", settings.model)):
        for entries in (own, _read_builtin()):
            fitting = [e for e in entries if e.model == name and fnmatchcase(host, e.host)]
            if fitting:
                return min(fitting, key=lambda entry: entry.host == "*").price
    from common.prices.published import find_published  # the train job lacks the package

    return find_published(settings)


def require_price(price: Price | None, settings: TeacherSettings) -> None:
    """Raises a SettingsError if the price, which a cost cap needs, is unknown."""
    if price is None:
        raise SettingsError(
            f"DISTILL_LABEL__MAX_COST_USD needs a price, and that of {settings.model!r} at "
            f"{settings.base_url} is unknown; put it, in dollars per million tokens, into a TOML "
            "file like this one, and set DISTILL_TEACHER__PRICES to its path:\n"
            f"[[price]]\nmodel = {json.dumps(settings.model)}\ninput = 0.5\noutput = 1.5"
        )


_Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field(min_length=1)
    host: str = Field("*", pattern=r"^[a-z0-9.*-]+$")
    input: _Dollars
    output: _Dollars
    cached_input: _Dollars | None = None
    cache_write: _Dollars | None = None
    batch_input: _Dollars | None = None
    batch_output: _Dollars | None = None

    @property
    def price(self) -> Price:
        cached = self.input if self.cached_input is None else self.cached_input
        price = Price(self.input, self.output, cached, self.cache_write)
        given = self.input / 2 if self.batch_input is None else self.batch_input
        output = self.output / 2 if self.batch_output is None else self.batch_output
        return replace(price, tiers=((BATCH, Price(given, output, min(cached, given))),))


class _PriceFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    price: list[_Entry]


@cache
def _read_builtin() -> list[_Entry]:
    return _read_entries(str(Path(__file__).with_name("prices.toml")))


def _read_entries(path: str) -> list[_Entry]:
    try:
        with fsspec.open(path, "rb") as file:
            content = tomllib.loads(file.read().decode())
        entries = _PriceFile.model_validate(content).price
    except ValidationError as error:
        raise InputError(f"price file {path!r}: {_explain(error, content)}; {_FORMAT}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"price file {path!r} is not valid TOML: {shorten(error)}") from None
    except Exception as error:  # each storage raises its own types
        raise InputError(
            f"DISTILL_TEACHER__PRICES: the price file {path!r} cannot be read: "
            f"{type(error).__name__}: {shorten(error)}"
        ) from None
    names = [(entry.model, entry.host) for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"price file {path!r}: model {name[0]!r} has {names.count(name)} entries for host "
                f"{name[1]!r}; keep one"
            )
    return entries


def _explain(error: ValidationError, content: dict[str, Any]) -> str:
    """Describes the first invalid field."""
    first: Any = max(error.errors(), key=lambda e: e["type"] == "extra_forbidden")
    *place, field = first["loc"]
    where = ""
    if len(place) > 1:
        entry = content["price"][place[1]]
        where = f"entry {place[1] + 1} (model {show(entry.get('model'))}): "
    if first["type"] == "missing":
        return f"{where}{field} is missing"
    reason = "no such field" if first["type"] == "extra_forbidden" else first["msg"].lower()
    return f"{where}{field}={show(first['input'])}: {reason}"
