"""The rules by which the stand-in teacher corrects a sentence.

They know the lexicon and the grammar, not the mistakes: of two possible corrections they choose
one, and are sometimes wrong. Text outside the built-in grammar gets the general rules only
(repeated words, the first letter, the full stop).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from common.builtin.lexicon import LANGUAGES, Lexicon, Reading, load_lexicon
from common.builtin.sentences import fit_article

_KNOWN_SHARE = 0.6
"""The least share of known words in a text of a built-in language."""
_VOTES = {"determiner": 1.5, "noun": 1.2}
"""Weights of words that disagree on the number of a phrase; other words weigh 1."""


@dataclass
class _Token:
    form: str
    reading: Reading | None

    @property
    def role(self) -> str:
        return self.reading.role if self.reading else "unknown"


def correct(text: str) -> str:
    """The corrected sentence; never fails."""
    ending = text.rstrip()[-1:] if text.rstrip()[-1:] in (".", "!", "?", "…", '"', "»") else "."
    words = _drop_repeats(text.rstrip().removesuffix(ending).split())
    lexicon = _find_lexicon(words)
    if lexicon is not None:
        tokens = _tag([_spell(word, lexicon) for word in words], lexicon)
        tokens = _agree(_order(tokens, lexicon), lexicon)
        pairs = zip(tokens, [*tokens[1:], tokens[-1]], strict=True)
        words = [fit_article(token.form, following.form) for token, following in pairs]
    sentence = " ".join(words)
    return sentence[:1].upper() + sentence[1:] + ending


def _drop_repeats(words: list[str]) -> list[str]:
    return [w for i, w in enumerate(words) if i == 0 or w.lower() != words[i - 1].lower()]


def _find_lexicon(words: list[str]) -> Lexicon | None:
    counts = {x: sum(w.lower() in load_lexicon(x).readings for w in words) for x in LANGUAGES}
    best = max(LANGUAGES, key=counts.__getitem__)
    is_known = words and counts[best] >= _KNOWN_SHARE * len(words)
    return load_lexicon(best) if is_known else None


def _spell(word: str, lexicon: Lexicon) -> str:
    """The known word with the most ways to become this unknown one, or the word itself."""
    if word.lower() in lexicon.readings:
        return word
    candidates = _near_misses(lexicon.language).get(word.lower(), [])
    return Counter(candidates).most_common(1)[0][0] if candidates else word


@cache
def _near_misses(language: str) -> dict[str, list[str]]:
    """Misspelling → the known words with one letter dropped, doubled or swapped, or no accents."""
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
    """Reads each word (nouns first after a determiner or adjective), and sets its case."""
    tokens: list[_Token] = []
    for word in words:
        nominal = bool(tokens) and tokens[-1].role in ("determiner", "adjective")
        reading = lexicon.read(word, "noun" if nominal else "verb") or lexicon.read(word)
        form = word
        if reading is not None:
            form = reading.lemma if reading.role == "other" else word.lower()
            if reading.role == "noun" and lexicon.language == "de":
                form = form.capitalize()
        tokens.append(_Token(form, reading))
    return tokens


def _order(tokens: list[_Token], lexicon: Lexicon) -> list[_Token]:
    """Orders determiner, adjective and noun, and the words of fixed phrases."""
    first, second = ("adjective", "noun") if lexicon.adjective_first else ("noun", "adjective")
    rank = {"determiner": 0, first: 1, second: 2}
    tokens = list(tokens)
    for i in range(len(tokens) - 1):
        here, following = tokens[i].role, tokens[i + 1].role
        after = tokens[i + 2].role if i + 2 < len(tokens) else ""
        starts_phrase = i > 0 and following == "determiner" and after in ("noun", "adjective")
        is_reversed = here in rank and following in rank and rank[here] > rank[following]
        if is_reversed and not starts_phrase:
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
    """Makes determiners, adjectives and verbs agree with nouns; adds missing articles."""
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
    """Splits into noun phrases, each with at most one noun, and single words."""
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
    """Singular or plural, by the weighted votes of the forms that can be only one of them."""
    votes = {"s": 0.0, "p": 0.0}
    for token in [*others, noun]:
        slots = [r.slot for r in lexicon.readings[token.form.lower()] if r.role == token.role]
        # a slot is a number, or gender, number and case
        numbers = {slot[:2][-1] for slot in slots if len(slot) == 1 or slot[0] == gender}
        if len(numbers) == 1:
            votes[numbers.pop()] += _VOTES.get(token.role, 1.0)
    return max(votes, key=lambda number: votes[number])
