"""The finished rounds of labelling: <root>/<run>/rounds/<number>.json.

The first round's texts are chosen by hash, each later one's by the student of the round before.
"""

from dataclasses import asdict, dataclass
from typing import Any

from common.run.storage import RunStorage

FOLDER = "rounds"


@dataclass(frozen=True)
class Round:
    """A finished round.

    Attributes:
        made_from: what all rounds of the run have in common.
        examples: what the labels' fingerprint says of them.
        labels: how many labels the student learned from.
        held_out: how many it was measured on, the same in all rounds.
        agreement: the share of these that it gave exactly, None if there are none.
        chosen: the ids of the texts to label next.
    """

    made_from: dict[str, Any]
    examples: str
    labels: int
    held_out: int
    agreement: float | None
    chosen: list[str]


def read_rounds(storage: RunStorage) -> list[Round]:
    """The finished rounds, in their order. Raises an InputError if one is damaged."""
    rounds: list[Round] = []
    while storage.exists(name := _name(len(rounds) + 1)):
        rounds.append(storage.read_json(name, Round))
    return rounds


def write_round(storage: RunStorage, number: int, finished: Round) -> None:
    """Keeps a finished round; `number` counts from 1."""
    storage.write_json(_name(number), asdict(finished))


def _name(number: int) -> str:
    return f"{FOLDER}/{number}.json"
