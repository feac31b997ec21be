"""The words of the built-in languages, and the readings of a word form.

A *slot* names a place in a paradigm: gender (m, f, n), number (s, p) and case (n, a). Languages
without gender or case repeat a form in all of its slots.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

LANGUAGES = ("en", "fr", "de", "es")
_STRONG = {"msn": "er", "fsn": "e", "nsn": "es", "msa": "en", "fsa": "e", "nsa": "es"}
_WEAK = {"msn": "e", "fsn": "e", "nsn": "e", "msa": "en", "fsa": "e", "nsa": "e"}


class Reading(NamedTuple):
    """A reading of a word form; `role` is determiner, adjective, noun, verb or other."""

    role: str
    lemma: str
    slot: str


@dataclass(frozen=True)
class Noun:
    """A noun; `gender` is m, f or n, and an animate one can be a subject."""

    lemma: str
    gender: str
    animate: bool


@dataclass(frozen=True)
class Lexicon:
    """All words of one language; `rests` are intransitive verbs."""

    language: str
    adjective_first: bool
    verb_second: bool
    nouns: tuple[Noun, ...]
    adjectives: tuple[str, ...]
    determiners: tuple[str, ...]
    verbs: tuple[str, ...]
    rests: tuple[str, ...]
    openers: tuple[str, ...]
    places: tuple[str, ...]
    paradigms: dict[tuple[str, str], dict[str, str]]
    """(role, lemma) → slot → form. Verbs and nouns have the slots s and p."""
    readings: dict[str, tuple[Reading, ...]]
    """Lower-case form → readings."""

    def form(self, role: str, lemma: str, slot: str, determiner: str = "") -> str:
        """The form of a lemma in a slot; German adjectives depend on the determiner."""
        paradigm = self.paradigms[role, lemma]
        if role in ("noun", "verb"):
            return paradigm[slot[1] if len(slot) > 1 else slot]
        if role == "adjective" and self.language == "de":
            slot = f"{'strong' if determiner in ('mein', 'unser', 'kein') else 'weak'} {slot}"
        return paradigm[slot]

    def read(self, word: str, *roles: str) -> Reading | None:
        """The first reading of a word in one of the roles; without roles, in any."""
        readings = self.readings.get(word.lower(), ())
        return next((r for r in readings if not roles or r.role in roles), None)


@cache
def load_lexicon(language: str) -> Lexicon:
    """The lexicon of one of `LANGUAGES`, from lexicon.toml."""
    table = tomllib.loads(Path(__file__).with_name("lexicon.toml").read_text("utf-8"))[language]
    paradigms: dict[tuple[str, str], dict[str, str]] = {}
    nouns = []
    for row in table["people"] + table["things"]:
        gender, singular, plural = row.split() if language != "en" else ["n", *row.split()]
        nouns.append(Noun(singular, gender, row in table["people"]))
        paradigms["noun", singular] = {"s": singular, "p": plural}
    for row in table["determiners"]:
        paradigms["determiner", row.split()[0]] = _determiner_slots(language, row.split())
    for row in table["adjectives"]:
        paradigms["adjective", row.split()[0]] = _adjective_slots(language, row.split())
    for row in table["verbs"] + table["rests"]:
        singular, plural = row.split()
        paradigms["verb", singular] = {"s": singular, "p": plural}
    return Lexicon(
        language=language,
        nouns=tuple(nouns),
        paradigms=paradigms,
        readings=_read_all(paradigms, table),
        adjective_first=table["adjective_first"],
        verb_second=table["verb_second"],
        openers=tuple(table["openers"]),
        places=tuple(table["places"]),
        adjectives=_lemmas(table["adjectives"]),
        determiners=_lemmas(table["determiners"]),
        verbs=_lemmas(table["verbs"]),
        rests=_lemmas(table["rests"]),
    )


def _lemmas(rows: list[str]) -> tuple[str, ...]:
    return tuple(row.split()[0] for row in rows)


def _slots() -> Iterator[str]:
    return (gender + number + case for gender in "mfn" for number in "sp" for case in "na")


def _determiner_slots(language: str, forms: list[str]) -> dict[str, str]:
    if language == "de":
        keys = [case + gender for case in "na" for gender in "mfnp"]
        by_case = dict(zip(keys, forms, strict=True))
        return {s: by_case[s[2] + ("p" if s[1] == "p" else s[0])] for s in _slots()}
    return _gendered(forms) if len(forms) == 4 else {s: forms[s[1] == "p"] for s in _slots()}


def _adjective_slots(language: str, forms: list[str]) -> dict[str, str]:
    if language == "de":
        stem = forms[0].removesuffix("e")
        kinds = {"weak": _WEAK, "strong": _STRONG}
        return {
            f"{kind} {s}": stem + endings.get(s, "en")
            for kind, endings in kinds.items()
            for s in _slots()
        }
    return _gendered(forms) if len(forms) == 4 else dict.fromkeys(_slots(), forms[0])


def _gendered(forms: list[str]) -> dict[str, str]:
    order = ("ms", "fs", "mp", "fp")
    return {s: forms[order.index(s[:2].replace("n", "m"))] for s in _slots()}


def _read_all(
    paradigms: dict[tuple[str, str], dict[str, str]], table: dict[str, Any]
) -> dict[str, tuple[Reading, ...]]:
    readings: dict[str, list[Reading]] = {}
    for (role, lemma), slots in paradigms.items():
        for slot, form in slots.items():
            readings.setdefault(form.lower(), []).append(Reading(role, lemma, slot.split()[-1]))
    for phrase in table["openers"] + table["places"]:
        for word in phrase.split():
            readings.setdefault(word.lower(), []).append(Reading("other", word, ""))
    if "a" in table["determiners"][1].split():
        readings["an"] = readings["a"]
    return {form: tuple(all_readings) for form, all_readings in readings.items()}
