from pathlib import Path

import pytest

from common.errors import InputError, SettingsError
from common.tasks.cleaning import GUARD, clean, guard
from common.tasks.rules import LabelRules
from common.tasks.task import load_task

TINY = """
name = "tiny"
[teacher]
system = "Shout."
user = "Text: {text}"
[teacher.completion]
start = "[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n"
example = "{text} [/INST] {label} </s><s>[INST] "
end = "{text} [/INST]"
[[few_shot]]
text = "yes"
label = "YES"
[student]
prompt = "Shout:\\n{text}"
"""


def load(toml):
    Path("task.toml").write_text(toml, "utf-8")
    return load_task("./task.toml")


def test_the_builtin_task_loads():
    task = load_task("gec")
    assert task.name == "gec"
    assert "She go home." in task.make_student_prompt("She go home.")


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(SettingsError, match=r"'gek'.*'gec'"):
        load_task("gek")


def test_a_missing_task_file_is_named():
    with pytest.raises(InputError, match=r"no/such\.toml") as caught:
        load_task("no/such.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("name = ", "TOML"),
        ("", "name"),
        ('name = "Has Spaces"', "name='Has Spaces'"),
        ('name = "t"\nmetric = ["exact_match"]', "metric"),
        ('name = "t"\nmetrics = ["bleu"]', "'bleu'.*exact_match"),
        ('name = "t"\nmetrics = []', "metrics"),
        ('name = "t"\nmetrics = ["over_edit_rate"]', "the lower"),
        ('name = "t"\n[columns]\ngroups = ["error"]', "'error' is a column of the predictions"),
        ('name = "t"\n[label_rules]\nreject_patterns = ["(a"]', r"label_rules.*'\(a'"),
        ('name = "t"\n[label_rules]\nmin_length_ratio = -1', "label_rules.min_length_ratio"),
        ('name = "t"\n[label_rules]\nreject_patterns = [3]', r"label_rules.*3"),
        ('name = "t"\n[label_rules]\nlanguages = ["en", "klingon"]', "languages.*'klingon'"),
        ('name = "t"\n[label_rules]\nlanguages = ["en"]', "at least two languages"),
        ('name = "t"\n[label_rules]\nmax_edit_ratio = 2', "label_rules.max_edit_ratio"),
        ('name = "t"\n[student]\nprompt = "no place"', r"student\.prompt.*\{text\}"),
        ('name = "t"\n[student]\nprompt = "{text} "', r"student\.prompt.*space"),
        ('name = "t"\n[teacher]\nuser = "no place"', r"teacher\.user.*\{text\}"),
        ('name = "t"\n[teacher.completion]\nend = "no place"', r"completion\.end.*\{text\}"),
        ('name = "t"\nunseen = ["sentence"]', "unseen"),
        ('name = "t"\n[[few_shot]]\ntext = "no label"', "few_shot"),
        (
            'name = "t"\n[label_rule]\nunquote = true',
            "label_rule=.*no such field; the nearest is label_rules",
        ),
        (
            'name = "t"\n[label_rules]\nunqoute = true',
            "unqoute=.*the nearest is label_rules.unquote",
        ),
    ],
)
def test_a_bad_task_file_is_told_in_one_line(toml, told):
    with pytest.raises(InputError, match=told) as caught:
        load(toml)
    assert "task.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_no_task():
    Path("task.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(InputError, match=r"task\.toml"):
        load_task("./task.toml")


def test_chat_messages():
    assert load(TINY).make_messages("no") == [
        {"role": "system", "content": "Shout."},
        {"role": "user", "content": "Text: yes"},
        {"role": "assistant", "content": "YES"},
        {"role": "user", "content": "Text: no"},
    ]


def test_without_a_system_prompt_there_is_no_system_message():
    task = load('name = "t"\n[student]\nprompt = "{text}"')
    assert task.make_messages("no") == [{"role": "user", "content": "no"}]


def test_completion_prompt_in_llama_2_markers():
    assert load(TINY).make_completion_prompt("no") == (
        "[INST] <<SYS>>\nShout.\n<</SYS>>\n\nyes [/INST] YES </s><s>[INST] no [/INST]"
    )


@pytest.mark.parametrize("text", ["{label}", "{text}", "{system}", "{{text}}", r"\1 {0} {", "{}"])
def test_braces_in_a_text_are_not_expanded(text):
    task = load(TINY)
    assert task.make_messages(text)[-1]["content"] == f"Text: {text}"
    assert task.make_completion_prompt(text).endswith(f"[INST] {text} [/INST]")
    assert task.make_student_prompt(text) == f"Shout:\n{text}"


def test_the_fingerprint_follows_the_content():
    assert load(TINY).label_fingerprint == load(f"# a comment\n{TINY}").label_fingerprint
    assert load(TINY).label_fingerprint != load(TINY.replace("Shout", "Whisper")).label_fingerprint


@pytest.mark.parametrize("marker", ["[/INST]", "<s>[INST]", "</s>", "<|im_end|>", "<<SYS>>"])
def test_a_marker_in_a_text_does_not_end_the_turn_of_a_completions_prompt(marker):
    task = load_task("gec")
    plain = task.make_completion_prompt("it say")
    prompt = task.make_completion_prompt(f"it say {marker} here")
    for spelling in ("[/INST]", "[INST]", "</s>", "<s>", "<|im_end|>", "<<SYS>>"):
        assert prompt.count(spelling) == plain.count(spelling)
    assert prompt.replace(GUARD, "") == plain.replace("it say", f"it say {marker} here")
    echoed = guard(f"It says {marker} here")
    assert clean("it say", echoed, LabelRules()) == (f"It says {marker} here", True)
