"""The built-in data set: correct sentences, and the same with mistakes.

The schema is that of `juancavallotti/multilingual-gec`: lang, sentence (correct), modified
("fix grammar: " and the sentence with one or two mistakes; 6 % have none), transformation,
sec_transformation.
"""

import random
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace

from common.builtin.lexicon import LANGUAGES, Lexicon, load_lexicon
from common.builtin.sentences import Word, join_words, make_sentence

PREFIX = "fix grammar: "
SPLIT_SIZES = {"train": 8000, "test": 1000}
_CLEAN_SHARE = 0.06
_TWO_MISTAKES_SHARE = 0.25

WordMistake = Callable[[list[Word], Lexicon, random.Random], list[Word] | None]
TextMistake = Callable[[str, random.Random], str]


def make_rows(split: str, seed: int = 0) -> Iterator[dict[str, str]]:
    """The rows of a split; the same seed gives the same rows."""
    rng = random.Random(f"{split} {seed}")
    for _ in range(SPLIT_SIZES[split]):
        language = rng.choice(LANGUAGES)
        words = make_sentence(language, rng)
        modified, kinds = add_mistakes(words, language, rng)
        first, second = (kinds + ["no_transformation"] * 2)[:2]
        yield {
            "lang": language,
            "sentence": join_words(words),
            "modified": PREFIX + modified,
            "transformation": first,
            "sec_transformation": second,
        }


def add_mistakes(words: list[Word], language: str, rng: random.Random) -> tuple[str, list[str]]:
    """The sentence as text with zero to two mistakes, and their kinds."""
    lexicon = load_lexicon(language)
    kinds: list[str] = []
    count = 0 if rng.random() < _CLEAN_SHARE else 2 if rng.random() < _TWO_MISTAKES_SHARE else 1
    for kind in rng.sample(_KINDS, len(_KINDS)):
        if len(kinds) == count:
            break
        if kind in _TEXT_MISTAKES:
            applies = _TEXT_MISTAKES[kind](join_words(words), rng) != join_words(words)
        else:
            changed = _WORD_MISTAKES[kind](words, lexicon, rng) or words
            applies, words = changed != words, changed
        kinds += [kind] if applies else []
    text = join_words(words)
    for kind in kinds:
        text = _TEXT_MISTAKES[kind](text, rng) if kind in _TEXT_MISTAKES else text
    return text, kinds


def _replace_one(
    words: list[Word], role: str, rng: random.Random, forms: Callable[[Word], set[str]]
) -> list[Word] | None:
    """Replaces a word of the role by another of its forms."""
    places = [(i, w) for i, w in enumerate(words) if w.role == role]
    options = [(i, form) for i, w in places for form in sorted(forms(w) - {w.form})]
    if not options:
        return None
    index, form = rng.choice(options)
    return [*words[:index], replace(words[index], form=form), *words[index + 1 :]]


def _change_form(role: str) -> WordMistake:
    """A mistake that replaces a word of the role by another form of its paradigm."""

    def mistake(words: list[Word], lexicon: Lexicon, rng: random.Random) -> list[Word] | None:
        paradigms = lexicon.paradigms
        return _replace_one(words, role, rng, lambda w: set(paradigms[role, w.lemma].values()))

    return mistake


def _swap_article(words: list[Word], lexicon: Lexicon, rng: random.Random) -> list[Word] | None:
    """Changes gender or case, or a and an; in English otherwise the number."""

    def forms(word: Word) -> set[str]:
        if word.lemma == "a" and word.slot[1] == "s":
            return {"a", "an"}
        paradigm = lexicon.paradigms["determiner", word.lemma]
        genders = {form for slot, form in paradigm.items() if slot[1] == word.slot[1]}
        return genders if len(genders) > 1 else set(paradigm.values())

    return _replace_one(words, "determiner", rng, forms)


def _drop_article(words: list[Word], lexicon: Lexicon, rng: random.Random) -> list[Word] | None:
    """Drops a definite article; any other determiner could not be restored."""
    key = ("determiner", lexicon.determiners[0])
    articles = [i for i, w in enumerate(words) if (w.role, w.lemma) == key]
    if not articles:
        return None
    index = rng.choice(articles)
    return words[:index] + words[index + 1 :]


def _swap_words(words: list[Word], lexicon: Lexicon, rng: random.Random) -> list[Word] | None:
    del lexicon
    index = rng.randrange(len(words) - 1)
    return [*words[:index], words[index + 1], words[index], *words[index + 2 :]]


def _duplicate(words: list[Word], lexicon: Lexicon, rng: random.Random) -> list[Word] | None:
    del lexicon
    index = rng.randrange(len(words))
    return words[: index + 1] + words[index:]


def _typo(text: str, rng: random.Random) -> str:
    """Drops, doubles or swaps letters inside a word of four letters or more."""
    words = text.split(" ")
    index = rng.choice([i for i, w in enumerate(words) if len(w.strip(".")) >= 4] or [0])
    word = words[index]
    at = rng.randrange(1, max(len(word.strip(".")) - 1, 2))
    kinds = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :],
    )
    words[index] = rng.choice(kinds if at > 1 else kinds[:2])
    return " ".join(words)


def _drop_accents(text: str, rng: random.Random) -> str:
    del rng
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def _lower_start(text: str, rng: random.Random) -> str:
    del rng
    return text[:1].lower() + text[1:]


def _drop_punctuation(text: str, rng: random.Random) -> str:
    del rng
    return text.removesuffix(".")


_WORD_MISTAKES: dict[str, WordMistake] = {
    "agreement": _change_form("verb"),
    "plural_s": _change_form("noun"),
    "swap_article": _swap_article,
    "adjective": _change_form("adjective"),
    "drop_article": _drop_article,
    "swap_words": _swap_words,
    "dup_word": _duplicate,
}
_TEXT_MISTAKES: dict[str, TextMistake] = {
    "typo": _typo,
    "drop_accents": _drop_accents,
    "lower_start": _lower_start,
    "drop_punct": _drop_punctuation,
}
_KINDS = sorted(_WORD_MISTAKES | _TEXT_MISTAKES)
