"""Correct sentences of the built-in grammar: [opener] subject verb [object] [place]."""

import random
from dataclasses import dataclass, replace

from common.builtin.lexicon import Lexicon, Noun, load_lexicon


@dataclass(frozen=True)
class Word:
    """A word of a sentence and the slot that its form fills."""

    form: str
    role: str = "other"
    lemma: str = ""
    slot: str = ""


def join_words(words: list[Word]) -> str:
    """The words as text, with an upper-case first letter and a full stop."""
    text = " ".join(word.form for word in words)
    return text[:1].upper() + text[1:] + "."


def make_sentence(language: str, rng: random.Random) -> list[Word]:
    """A random correct sentence."""
    lexicon = load_lexicon(language)
    number = rng.choice("sp")
    subject = _noun_phrase(lexicon, rng, animate=True, number=number, case="n")
    transitive = rng.random() < 0.75
    lemma = rng.choice(lexicon.verbs if transitive else lexicon.rests)
    verb = [Word(lexicon.form("verb", lemma, number), "verb", lemma, number)]
    rest = []
    if transitive:
        animate, number = rng.random() < 0.3, rng.choice("sp")
        rest += _noun_phrase(lexicon, rng, animate=animate, number=number, case="a")
    if not transitive or rng.random() < 0.3:
        rest += [Word(form) for form in rng.choice(lexicon.places).split()]
    if rng.random() >= 0.35:
        return [*subject, *verb, *rest]
    opener = [Word(form) for form in rng.choice(lexicon.openers).split()]
    core = [*verb, *subject] if lexicon.verb_second else [*subject, *verb]
    return [*opener, *core, *rest]


def _noun_phrase(
    lexicon: Lexicon, rng: random.Random, *, animate: bool, number: str, case: str
) -> list[Word]:
    noun: Noun = rng.choice([n for n in lexicon.nouns if n.animate == animate])
    slot = noun.gender + number + case
    determiner = lexicon.determiners[0] if rng.random() < 0.3 else rng.choice(lexicon.determiners)
    core = [Word(lexicon.form("noun", noun.lemma, slot), "noun", noun.lemma, slot)]
    if rng.random() < 0.55:
        lemma = rng.choice(lexicon.adjectives)
        form = lexicon.form("adjective", lemma, slot, determiner)
        adjective = Word(form, "adjective", lemma, slot)
        core = [adjective, *core] if lexicon.adjective_first else [*core, adjective]
    first = Word(lexicon.form("determiner", determiner, slot), "determiner", determiner, slot)
    return [replace(first, form=fit_article(first.form, core[0].form)), *core]


def fit_article(determiner: str, following: str) -> str:
    """English a or an by the next word's first letter; other determiners unchanged."""
    if determiner.lower() not in ("a", "an"):
        return determiner
    return determiner[0] + ("n" if following[:1].lower() in "aeiou" else "")
