"""The student's tokenizer and its prompt, the same in training and evaluation."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.settings import Settings
from common.student.weights import find_student, refuse_student
from common.tasks.task import Task

IGNORED = -100
"""The label of a token without loss, as in torch's cross-entropy."""


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The student's tokenizer, with a padding token. Raises an InputError if it is unusable."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(find_student(settings), padding_side="left")
    except Exception as error:  # a damaged folder raises many types
        refuse_student(settings, error)
    if tokenizer.eos_token_id is None:
        refuse_student(settings, ValueError("its tokenizer has no end-of-sequence token"))
    if tokenizer.pad_token_id is None:
        # the end-of-sequence token is still learned: padding is masked in attention and loss
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, task: Task, text: str) -> list[int]:
    """The prompt's tokens, in the student's chat template if it has one."""
    return _encode_turns(tokenizer, [(task.make_student_prompt(text), "")])


def encode_few_shot_prompt(tokenizer: PreTrainedTokenizerBase, task: Task, text: str) -> list[int]:
    """The same after the task's few-shot examples, as earlier turns."""
    shots = [(task.make_student_prompt(shot.text), shot.label) for shot in task.few_shot]
    return _encode_turns(tokenizer, [*shots, (task.make_student_prompt(text), "")])


def _encode_turns(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]) -> list[int]:
    """Tokens of prompts and answers, without the last answer."""
    if tokenizer.chat_template:
        messages = [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        rendered = tokenizer.apply_chat_template(
            messages[:-1],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # the label comes first
        )
        # the template has added the special tokens
        return list(tokenizer(rendered, add_special_tokens=False).input_ids)
    plain = "\n\n".join(f"{prompt}\n{answer}" for prompt, answer in turns)
    ids = list(tokenizer(plain).input_ids)
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def encode_example(
    tokenizer: PreTrainedTokenizerBase, task: Task, text: str, label: str
) -> dict[str, list[int]]:
    """Prompt, label and end-of-sequence token; the loss covers the last two."""
    prompt = encode_prompt(tokenizer, task, text)
    answer = [*tokenizer(label, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}
