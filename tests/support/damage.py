"""Ways in which files and values are damaged."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

JUNK: list[Any] = [
    *(None, [], {}, "x", "", -1, 0, True, 1.5, float("inf"), float("nan"), 10**30),
    *([1, "a"], {"a": 1}, "a\nb", "\ud800", [[]]),
]
"""Values of JSON that hardly any field takes."""


def _flip(content: bytes, place: float) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[int(len(changed) * place)] ^= 0x55
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "its first bytes": lambda content: content[:10],
    "cut in half": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-9],
    "without its start": lambda content: content[7:],
    "a bit at the start": lambda content: _flip(content, 0),
    "a bit in the middle": lambda content: _flip(content, 0.5),
    "a bit at the end": lambda content: _flip(content, 0.99),
    "zeros": lambda content: bytes(len(content)),
    "zeros in the middle": lambda content: (
        content[: len(content) // 2] + bytes(200) + content[len(content) // 2 + 200 :]
    ),
    "noise": lambda content: random.Random(0).randbytes(len(content)),
    "noise behind it": lambda content: content + b"\xff\xfe" * 20,
    "utf-16": lambda content: content.decode("utf-8", "replace").encode("utf-16"),
    "a page": lambda content: b"<!DOCTYPE html><html><body>404 not found</body></html>\n",
    "a pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
}
"""By name, what happens to the content of a file."""


def list_paths(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within JSON."""
    items = content.items() if isinstance(content, dict) else ()
    if isinstance(content, list):
        items = enumerate(content)
    for key, value in items:
        yield (*before, key)
        yield from list_paths(value, (*before, key))


def replace_at(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path; `...` deletes it."""
    changed = copy.deepcopy(content)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def damage_json(content: Any, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Some of the ways to replace or delete a value within JSON, each with a name."""
    rng = random.Random(seed)
    paths = list(list_paths(content))
    for path in rng.sample(paths, min(count, len(paths))):
        value = rng.choice([*JUNK, ...])
        name = f"{'.'.join(map(str, path))}={'deleted' if value is ... else repr(value)}"
        yield name, json.dumps(replace_at(content, path, value)).encode()
