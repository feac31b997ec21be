"""The student's tokenizer and its prompt, the same in training and evaluation.

What comes from data is never a special token: a text with `</s>` has those four characters.
"""

import json
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.records import hash_content
from common.settings import Settings
from common.student.source import find_student, make_options, read_config, refuse_student
from common.tasks.task import Task

IGNORED = -100
"""The label of a token without loss, as in torch's cross-entropy."""
TODAY = date(2026, 1, 1)
"""The date in chat templates that have one: prompts are the same on every day."""
_STRFTIME = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The student's tokenizer, with a padding token. Raises an InputError if it is unusable."""
    options, vocabulary = make_options(settings), read_config(settings).get_text_config().vocab_size
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            find_student(settings), padding_side="left", **options
        )
        _fix_date(tokenizer)
        _check_tokens(tokenizer, vocabulary)
    except Exception as error:  # a damaged folder raises many types
        refuse_student(settings, error)
    return tokenizer


def _fix_date(tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the date into the chat template, and so into the adapter's."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or "strftime_now" not in template:
        return
    fixed = _STRFTIME.sub(lambda found: json.dumps(TODAY.strftime(found[2])), template)
    if "strftime_now(" in fixed:  # its format is no literal
        macro = f"{{%- macro strftime_now(format) -%}}{TODAY.isoformat()}{{%- endmacro -%}}"
        fixed = macro + fixed
    tokenizer.chat_template = fixed


def _check_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> None:
    """Chooses a padding token; raises a ValueError if a token has no embedding."""
    if tokenizer.eos_token_id is None:
        raise ValueError("its tokenizer has no end-of-sequence token")
    size = vocabulary or len(tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None or pad >= size:
        # the end-of-sequence token is still learned: padding is masked in attention and loss
        unknown = tokenizer.unk_token_id
        is_usable = unknown is not None and unknown < size
        tokenizer.pad_token = tokenizer.unk_token if is_usable else tokenizer.eos_token
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    # special tokens never come from data, but from the template
    used = {*tokenizer.get_vocab().values(), tokenizer.eos_token_id} - special
    used |= {tokenizer.eos_token_id, *encode_prompt(tokenizer, Task(name="probe"), "a text")}
    if max(used) >= size:
        raise ValueError(
            f"its tokenizer has {max(used) + 1} tokens, and its embedding {size}; resize the "
            "embedding, or remove the added tokens"
        )


def describe_frame(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what the chat template puts around a prompt, with the date if it has one."""
    frame = encode_prompt(tokenizer, Task(name="probe"), "a text")
    is_dated = TODAY.strftime("%Y") in tokenizer.decode(frame)
    return hash_content(frame) + (f", dated {TODAY}" if is_dated else "")


def fingerprint_student(
    settings: Settings, task: Task, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What a trained adapter depends on: the prompt and the base student."""
    without_effect = ["models", "require_gpu", "trust_remote_code", "allow_pickle"]
    rationale = {"student.rationale": task.student.rationale} if task.student.rationale else {}
    return {
        "student.prompt": task.student.prompt,
        **rationale,
        "student.frame": describe_frame(tokenizer),
        **settings.fingerprint("student", exclude=without_effect),
    }


def encode_prompt(tokenizer: PreTrainedTokenizerBase, task: Task, text: str) -> list[int]:
    """The prompt's tokens, in the student's chat template if it has one."""
    return _encode_turns(tokenizer, task, [(text, "")])


def encode_few_shot_prompt(tokenizer: PreTrainedTokenizerBase, task: Task, text: str) -> list[int]:
    """The same after the task's few-shot examples, as earlier turns."""
    shots = [(shot.text, shot.label) for shot in task.few_shot]
    return _encode_turns(tokenizer, task, [*shots, (text, "")])


def _encode_turns(
    tokenizer: PreTrainedTokenizerBase, task: Task, turns: list[tuple[str, str]]
) -> list[int]:
    """Tokens of texts and labels, without the last label."""
    ids = _apply_template(tokenizer, task, turns, sanitize_control_tokens=True, return_dict=False)
    return [*_find_start(tokenizer), *ids]


def write_prompt(tokenizer: PreTrainedTokenizerBase, task: Task, text: str) -> str:
    """The prompt of `encode_prompt` as text, with special tokens written out."""
    start = tokenizer.convert_ids_to_tokens(_find_start(tokenizer))
    return "".join([*start, _apply_template(tokenizer, task, [(text, "")], tokenize=False)])


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, task: Task, turns: list[tuple[str, str]], **options: Any
) -> Any:
    template = None if tokenizer.chat_template else _make_template(task.student.prompt)
    messages = []
    for text, label in turns:
        prompt = text if template else task.make_student_prompt(text)
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": label})
    return tokenizer.apply_chat_template(
        messages[:-1],
        chat_template=template,
        add_generation_prompt=True,
        enable_thinking=False,  # the label comes first
        **options,
    )


def _make_template(prompt: str) -> str:
    """A chat template for a student without one: the prompts, each with its label."""
    pieces = "".join(
        "{{ turn['content'] }}" if piece == "{text}" else f"{{{{ {quote(piece)} }}}}"
        for piece in re.split(r"(\{text\})", prompt + "\n")
    )
    return (
        "{%- for turn in messages -%}{%- if turn['role'] == 'user' -%}"
        + pieces
        + "{%- else -%}{{ turn['content'] + '\\n\\n' }}{%- endif -%}{%- endfor -%}"
    )


def quote(text: str) -> str:
    """A string literal of Jinja and of Go."""
    return json.dumps(text, ensure_ascii=False)  # Jinja takes no surrogate pairs


def _find_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens before a prompt without a chat template, such as BOS."""
    if tokenizer.chat_template:
        return []
    whole = list(tokenizer("a").input_ids)
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    return whole[: whole.index(bare[0])]


def encode_example(
    tokenizer: PreTrainedTokenizerBase, task: Task, text: str, label: str
) -> dict[str, list[int]]:
    """Prompt, label and end-of-sequence token; the loss covers the last two."""
    prompt = encode_prompt(tokenizer, task, text)
    encoded = tokenizer(label, add_special_tokens=False, split_special_tokens=True)
    answer = [*encoded.input_ids, tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def count_shared(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with."""
    first, last = min(prompts), max(prompts)  # what these share, all between them do
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return min(len(first), len(last))
