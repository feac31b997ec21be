import json
import pickle
import re
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from common.errors import InputError
from common.tasks.languages import LANGUAGES, detect_language
from common.tasks.patterns import check_pattern, search
from common.tasks.rules import LabelRules, apply_rules, explain_slow_pattern, measure_edit_ratio
from common.tasks.task import load_task

TEXT = "She go to school every days."
LABEL = "She goes to school every day."
GEC = load_task("gec")
FOUR = ("en", "fr", "de", "es")
SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "gec_human"


@pytest.mark.parametrize(
    ("text", "response", "rules", "label"),
    [
        ("a", " b \n", {}, "b"),
        ("a", "two\nlines", {}, "two\nlines"),
        ("a", '"b"', {}, '"b"'),
        ("a", '"b"', {"unquote": True}, "b"),
        ("a", "«\u00a0b\u00a0»", {"unquote": True}, "b"),
        ("a", "„b“", {"unquote": True}, "b"),
        ("a", '"b', {"unquote": True}, '"b'),
        ("a", '"', {"unquote": True}, '"'),
        ('"a" he said', '"b"', {"unquote": True}, '"b"'),
        ("Yes, he said, no", '"Yes," he said, "no"', {"unquote": True}, '"Yes," he said, "no"'),
        ("a", "POSITIVE", {"lower_case": True}, "positive"),
        ("a", "Positive.", {"lower_case": True, "allowed": ["positive"]}, "positive"),
        ("a", "e.g.", {"allowed": ["e.g."]}, "e.g."),
        ("a", "Positive.", {"allowed": ["positive", "negative"]}, "positive"),
        ("a", "negative", {"allowed": ["Positive", "NEGATIVE"]}, "NEGATIVE"),
        ("a", "IT", {"allowed": ["IT", "It"]}, "IT"),
        ("two\nlines", "2\nlines", {"single_line": True}, "2\nlines"),
        ("a", "fine", {"reject_patterns": ["^Sure"]}, "fine"),
        ("Sure: yes", "Sure: yes!", {"reject_patterns": ["^Sure"]}, "Sure: yes!"),
        ("x" * 20, "y" * 10, {"min_length_ratio": 0.5}, "y" * 10),
        ("x" * 20, "y" * 40, {"max_length_ratio": 2}, "y" * 40),
        ("short", "y" * 40, {"max_length_ratio": 2}, "y" * 40),
    ],
)
def test_a_response_that_passes_the_rules(text, response, rules, label):
    assert apply_rules(text, response, LabelRules(**rules)) == (label, None)


@pytest.mark.parametrize(
    ("text", "response", "rules", "reason"),
    [
        ("a", "", {}, "empty"),
        ("a", " \n", {}, "empty"),
        ("a", '""', {"unquote": True}, "empty"),
        ("a", "neutral", {"allowed": ["positive", "negative"]}, "not_allowed"),
        ("a", "it", {"allowed": ["IT", "It"]}, "not_allowed"),
        ("a", "two\nlines", {"single_line": True}, "several_lines"),
        ("a", "Sure: b", {"reject_patterns": ["^No", "^Sure"]}, "pattern"),
        ("x" * 20, "y" * 9, {"min_length_ratio": 0.5}, "length_ratio"),
        ("x" * 20, "y" * 41, {"max_length_ratio": 2}, "length_ratio"),
    ],
)
def test_a_response_that_a_rule_rejects(text, response, rules, reason):
    assert apply_rules(text, response, LabelRules(**rules))[1] == reason


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (f"Sure, here is the sentence: {LABEL}", "pattern"),
        (f"Here's the corrected sentence: {LABEL}", "pattern"),
        ("As an AI, I would rather not.", "pattern"),
        ("I cannot correct this.", "pattern"),
        ("I’m sorry, but I can’t help with that.", "pattern"),
        ("Voici la phrase corrigée : elle va à l'école.", "pattern"),
        ("Hier ist der korrigierte Satz: Sie geht zur Schule.", "pattern"),
        ("Aquí está la frase corregida: ella va a la escuela.", "pattern"),
        (f"{LABEL}\n\nI corrected the verb.", "several_lines"),
        ("She", "length_ratio"),
    ],
)
def test_chatter_is_no_correction(response, reason):
    assert apply_rules(TEXT, response, GEC.label_rules)[1] == reason


@pytest.mark.parametrize(
    ("text", "response"),
    [
        (TEXT, LABEL),
        ("Hier is the book", "Here is the book."),
        ("he said i cannot come", "He said I cannot come."),
        ("I cannt come, i cant help it", "I cannot come, I can't help it."),
        ("Voici le livre il est a moi", "Voici le livre : il est à moi."),
        ("SHE GO TO SCHOOL EVERY DAYS", LABEL),
        ("Eres mi favorito delegado de todos .", "Eres mi delegado favorito de todos."),
        ("Of course he come.", "Of course he comes."),
    ],
)
def test_plain_corrections_pass_the_rules(text, response):
    assert apply_rules(text, response, GEC.label_rules) == (response, None)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (TEXT, "Ella va a la escuela todos los días."),
        ("Los niño juega en el parque con sus amigo.", "Die Kinder spielen im Park."),
        ("Elle a été nommé ministre de la culture.", "She was made minister of culture."),
        ("Muss jetzt ich ein schlechtes Gewissen haben?", "Dois-je avoir mauvaise conscience ?"),
    ],
)
def test_a_label_in_another_language_is_filtered(text, label):
    rules = LabelRules(languages=FOUR)
    assert apply_rules(text, label, rules) == (label, "wrong_language")
    assert apply_rules(text, label, GEC.label_rules) == (label, "wrong_language")
    assert apply_rules(text, label, LabelRules()) == (label, None)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Good morning, all!", "Guten Morgen, alle zusammen!"),  # too short
        ("Where have all the flowers gone", "Was ist das?"),
        (TEXT, "My grandmother sold her old bicycle."),  # the same language
        ("Whisky, Pizza, Sushi, Tango, Polka", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),  # none
        ("He said: « la vie est belle » to me.", "He said 'la vie est belle' to me."),  # two
    ],
)
def test_a_language_in_doubt_is_no_reason_to_filter(text, label):
    assert apply_rules(text, label, LabelRules(languages=FOUR)) == (label, None)


@pytest.mark.parametrize("language", [None, *FOUR])
def test_languages_are_told_apart(language):
    shots = {"en": 0, "fr": 1, "de": 2, "es": 3}
    text = GEC.few_shot[shots[language]].label if language else "Die Kinder."
    assert detect_language(text, FOUR) == language


def test_every_language_that_a_task_may_name_can_be_told_apart():
    langid = pytest.importorskip("py3langid.langid")
    detector = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    assert set(detector.labels) - {"zxx"} == LANGUAGES


@pytest.mark.parametrize(
    ("text", "label", "ratio"),
    [
        ("abcd", "abcd", 0.0),
        ("abcd", "abce", 0.25),
        ("abcd", "abcde", 0.2),
        ("abcd", "wxyz", 1.0),
        (" ABCD\n", "abcd", 0.0),
        ("é", unicodedata.normalize("NFD", "é"), 0.0),
    ],
)
def test_the_edit_ratio(text, label, ratio):
    assert measure_edit_ratio(text, label) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        ("a" * 20, "a" * 10 + "b" * 10, None),
        ("a" * 20, "a" * 9 + "b" * 11, "over_edit"),
        ("a" * 19, "b" * 19, None),
        (TEXT, "My grandmother sold her bicycle.", "over_edit"),
    ],
)
def test_an_over_edited_label_is_filtered(text, label, reason):
    assert apply_rules(text, label, LabelRules(max_edit_ratio=0.5))[1] == reason


@pytest.mark.parametrize("unit", ["a word, ", "如果没有空格，"])
def test_the_edit_ratio_of_long_texts_is_about_that_of_characters(unit):
    text = unit * 20_000
    begun = time.process_time()
    assert measure_edit_ratio(text, text.upper()) == 0
    assert measure_edit_ratio(text, text[: len(text) // 2]) == pytest.approx(0.5, abs=0.01)
    assert measure_edit_ratio(text, "x" * len(text)) > 0.9
    assert time.process_time() - begun < 5


ENDLESS = "(a|aa)+$"
"""Takes exponential time at many a, and then another letter."""
SLOW = "a" * 60 + "b"


@pytest.mark.parametrize("rules", [{"reject_patterns": [ENDLESS]}, {"extract": ENDLESS}])
def test_a_pattern_that_backtracks_costs_its_row_alone(rules, monkeypatch):
    monkeypatch.setattr("common.tasks.patterns._SECONDS", 0.02)
    rules = LabelRules(**rules)
    assert apply_rules("text", SLOW, rules) == (SLOW, "slow_pattern")
    assert apply_rules("text", "fine", rules)[1] == ("extract" if rules.extract else None)
    explained = explain_slow_pattern("text", SLOW, rules)
    assert explained.startswith("the pattern '(a|aa)+$' takes longer than 0.02 s")


def test_a_pattern_that_backtracks_on_the_text_costs_its_row_alone(monkeypatch):
    monkeypatch.setattr("common.tasks.patterns._SECONDS", 0.02)
    rules = LabelRules(reject_patterns=[ENDLESS])
    assert apply_rules(SLOW, "a", rules) == ("a", "slow_pattern")


def test_a_pattern_that_backtracks_on_many_texts_ends_the_job(monkeypatch):
    monkeypatch.setattr("common.tasks.patterns._SECONDS", 0.001)
    monkeypatch.setattr("common.tasks.patterns._exceeded", Counter())
    rules = LabelRules(reject_patterns=[ENDLESS])
    errors = [apply_rules("text", f"{i} {SLOW}", rules)[1] for i in range(49)]
    assert errors == ["slow_pattern"] * 49
    with pytest.raises(
        InputError, match=r"'\(a\|aa\)\+\$' takes longer .* mend it in the task file"
    ):
        apply_rules("text", SLOW, rules)
    with pytest.raises(InputError):  # at once, as other replies wait to be written
        apply_rules("text", "fine", rules)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("x{e}", "x{e}"),
        ("x{e<=1}|y", "ab"),
        (r"x\{e}", "x{e}"),
        ("[[:alpha:]]", "b"),
        (r"\N{LATIN SMALL LETTER A}", "a"),
        ("a{,2}b{1}", "aab"),
        ("(?is)A.b", "a\nB"),
        ("(?P<x>a)(?P=x)", "aa"),
        (r"^\s*(?!no)\w+\b", " yes"),
    ],
)
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_patterns_are_read_as_those_of_re(pattern, text):
    found, expected = search(check_pattern(pattern), text), re.search(pattern, text)
    assert (found and found.span()) == (expected and expected.span())


def test_rules_survive_the_way_to_an_actor():
    rules = pickle.loads(pickle.dumps(GEC.label_rules))
    assert rules == GEC.label_rules
    assert apply_rules(TEXT, "I cannot correct this.", rules)[1] == "pattern"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the corrections are not beside the checkout")
@pytest.mark.parametrize("name", ["de_falko_merlin.test", "it_ud_valico"])
def test_corrections_by_people_pass_the_rules(name):
    lines = (SHARED / f"{name}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pairs = [(row["source"], label) for row in rows for label in row["targets"]]
    broken = [apply_rules(text, label, GEC.label_rules)[1] for text, label in pairs]
    assert len(pairs) - broken.count(None) <= 0.001 * len(pairs)
