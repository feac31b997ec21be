"""Corrects a sentence by rules, from its text alone: the knowledge of the stand-in teacher.

The rules know the lexicon and the grammar, not the mistakes that were made: where a sentence can
be mended in two ways, they choose one, and so they are sometimes wrong, as a teacher is. Text that
is not of the built-in grammar gets the general rules only (repeated words, the first letter, the
full stop).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from common.builtin.lexicon import LANGUAGES, Lexicon, Reading, load_lexicon
from common.builtin.sentences import fit_article

_KNOWN_SHARE = 0.6
"""The share of known words from which on a text is taken to be in a built-in language."""
_VOTES = {"determiner": 1.5, "noun": 1.2}
"""How much a word counts where a phrase is half singular, half plural; others count 1."""


@dataclass
class _Token:
    form: str
    reading: Reading | None

    @property
    def role(self) -> str:
        return self.reading.role if self.reading else "unknown"


def correct(text: str) -> str:
    """The corrected sentence. It never fails: what no rule knows stays as it is."""
    ending = text.rstrip()[-1:] if text.rstrip()[-1:] in (".", "!", "?", "…", '"', "»") else "."
    words = _drop_repeats(text.rstrip().removesuffix(ending).split())
    lexicon = _find_lexicon(words)
    if lexicon is not None:
        tokens = _tag([_spell(word, lexicon) for word in words], lexicon)
        tokens = _agree(_order(tokens, lexicon), lexicon)
        words = [
            fit_article(t.form, n.form)
            for t, n in zip(tokens, [*tokens[1:], tokens[-1]], strict=True)
        ]
    sentence = " ".join(words)
    return sentence[:1].upper() + sentence[1:] + ending


def _drop_repeats(words: list[str]) -> list[str]:
    return [w for i, w in enumerate(words) if i == 0 or w.lower() != words[i - 1].lower()]


def _find_lexicon(words: list[str]) -> Lexicon | None:
    lexicons = [load_lexicon(language) for language in LANGUAGES]
    known, best = max(
        ((sum(w.lower() in x.readings for w in words), x) for x in lexicons),
        key=lambda pair: pair[0],
    )
    return best if words and known >= _KNOWN_SHARE * len(words) else None


def _spell(word: str, lexicon: Lexicon) -> str:
    """The known word that an unknown one is most likely a misspelling of, or the word itself."""
    if word.lower() in lexicon.readings:
        return word
    candidates = _near_misses(lexicon.language).get(word.lower(), [])
    return Counter(candidates).most_common(1)[0][0] if candidates else word


@cache
def _near_misses(language: str) -> dict[str, list[str]]:
    """Misspelling → the known words that it can come from.

    One letter is dropped, doubled or swapped with its neighbour, or all accents are lost.
    """
    table: dict[str, list[str]] = {}
    for form in load_lexicon(language).readings:
        for miss in _misspell(form):
            table.setdefault(miss, []).append(form)
    return table


def _misspell(form: str) -> Iterator[str]:
    unaccented = form.translate(str.maketrans("äöüéèêëàâîïôûùçáíóúñ", "aoueeeeaaiiouucaioun"))
    for base in {form, unaccented}:
        yield base
        for i in range(1, len(base)):
            yield base[:i] + base[i + 1 :]
            yield base[:i] + base[i - 1 :]
            yield base[: i - 1] + base[i] + base[i - 1] + base[i + 1 :]


def _tag(words: list[str], lexicon: Lexicon) -> list[_Token]:
    """Reads each word, and gives known words their own case.

    One that is both noun and verb is a noun after a determiner or an adjective.
    """
    tokens: list[_Token] = []
    for word in words:
        nominal = bool(tokens) and tokens[-1].role in ("determiner", "adjective")
        reading = lexicon.read(word, *(("noun",) if nominal else ("verb",))) or lexicon.read(word)
        form = word
        if reading is not None:
            form = reading.lemma if reading.role == "other" else word.lower()
            form = (
                form.capitalize() if reading.role == "noun" and lexicon.language == "de" else form
            )
        tokens.append(_Token(form, reading))
    return tokens


def _order(tokens: list[_Token], lexicon: Lexicon) -> list[_Token]:
    """Puts determiner, adjective and noun in their order, and the words of a fixed phrase too."""
    rank = (
        {"determiner": 0, "adjective": 1, "noun": 2}
        if lexicon.adjective_first
        else {"determiner": 0, "noun": 1, "adjective": 2}
    )
    tokens = list(tokens)
    for i in range(len(tokens) - 1):
        here, following = tokens[i].role, tokens[i + 1].role
        after = tokens[i + 2].role if i + 2 < len(tokens) else ""
        starts_next_phrase = (
            following == "determiner"
            and after in ("noun", "adjective")
            and here != "determiner"
            and i > 0
        )
        if (
            here in rank
            and following in rank
            and rank[here] > rank[following]
            and not starts_next_phrase
        ):
            tokens[i], tokens[i + 1] = tokens[i + 1], tokens[i]
    for phrase in lexicon.openers + lexicon.places:
        wanted = phrase.lower().split()
        for i in range(len(tokens) - len(wanted) + 1):
            window = tokens[i : i + len(wanted)]
            if sorted(t.form.lower() for t in window) == sorted(wanted):
                window.sort(key=lambda t: wanted.index(t.form.lower()))
                tokens[i : i + len(wanted)] = window
                break
    return tokens


def _agree(tokens: list[_Token], lexicon: Lexicon) -> list[_Token]:
    """Makes determiners, adjectives and verbs agree with nouns; adds an article where none is."""
    verb = next((t for t in tokens if t.role == "verb"), None)
    result: list[_Token] = []
    phrases = 0
    for phrase in _phrases(tokens):
        if not any(t.role == "noun" for t in phrase):
            result += phrase
            continue
        result += _agree_phrase(phrase, verb if phrases == 0 else None, lexicon)
        phrases += 1
    return result


def _phrases(tokens: list[_Token]) -> Iterator[list[_Token]]:
    """Splits into noun phrases, of one noun at most and a determiner in front, and single words."""
    phrase: list[_Token] = []
    for token in tokens:
        roles = [t.role for t in phrase]
        belongs = token.role in ("noun", "adjective") and token.role not in roles
        if phrase and not belongs:
            yield phrase
            phrase = []
        if token.role in ("determiner", "noun", "adjective"):
            phrase.append(token)
        else:
            yield [token]
    if phrase:
        yield phrase


def _agree_phrase(phrase: list[_Token], verb: _Token | None, lexicon: Lexicon) -> list[_Token]:
    noun = next(t for t in phrase if t.role == "noun")
    assert noun.reading is not None
    gender = next(n.gender for n in lexicon.nouns if n.lemma == noun.reading.lemma)
    number = _vote_number(
        [t for t in phrase if t is not noun] + ([verb] if verb else []), noun, gender, lexicon
    )
    slot = gender + number + ("n" if verb else "a")
    determiner = next((t for t in phrase if t.role == "determiner"), None)
    if determiner is None:
        determiner = _Token("", Reading("determiner", lexicon.determiners[0], slot))
        phrase = [determiner, *phrase]
    assert determiner.reading is not None
    for token in [*phrase, *([verb] if verb else [])]:
        assert token.reading is not None
        token.form = lexicon.form(token.role, token.reading.lemma, slot, determiner.reading.lemma)
    return phrase


def _vote_number(others: list[_Token], noun: _Token, gender: str, lexicon: Lexicon) -> str:
    """Singular or plural, by the forms that can be only one of them: each has a vote."""
    votes = {"s": 0.0, "p": 0.0}
    for token in [*others, noun]:
        readings = [r.slot for r in lexicon.readings[token.form.lower()] if r.role == token.role]
        numbers = {
            slot[1] if len(slot) > 1 else slot
            for slot in readings
            if len(slot) == 1 or slot[0] == gender
        }
        if len(numbers) == 1:
            votes[numbers.pop()] += _VOTES.get(token.role, 1.0)
    return max(votes, key=lambda number: votes[number])
