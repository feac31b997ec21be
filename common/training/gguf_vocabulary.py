"""A tokenizer as llama.cpp knows it: byte-level BPE, or SentencePiece's BPE as of Llama 2.

llama.cpp names how a text is split before BPE (`tokenizer.ggml.pre`). The name is found by the
pre-tokenizer's structure in tokenizer.json; see llama.cpp's `src/llama-vocab.cpp`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": _LLAMA3},
    "behavior": "Isolated",
    "invert": False,
}
_PRE_TOKENIZERS: dict[str, tuple[bool, list[Any]]] = {
    "gpt-2": (False, [_BYTES]),
    "smollm": (False, [_DIGITS, _BYTES]),
    "llama-bpe": (True, [_SPLIT, _BYTES | {"use_regex": False}]),
    "smaug-bpe": (False, [_SPLIT, _BYTES | {"use_regex": False}]),
}
"""By llama.cpp's name: whether words that are tokens stay whole (`ignore_merges`); the steps."""
_SPACE = "▁"
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with llama.cpp's kinds and, for SentencePiece, scores.

    `as_read` encodes as llama.cpp will.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    adds_space: bool
    as_read: Tokenizer

    def encode(self, text: str) -> list[int]:
        """The tokens that llama.cpp gives, with special tokens where they are written."""
        return list(self.as_read.encode(text, add_special_tokens=False).ids)

    def write(self, writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
        """Adds it to a file, with the special tokens and the chat template."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        writer.add_add_space_prefix(self.adds_space)
        # templates write what they need; a server that adds it, too, would double it
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
        for add, token in (
            (writer.add_bos_token_id, tokenizer.bos_token_id),
            (writer.add_eos_token_id, tokenizer.eos_token_id),
            (writer.add_unk_token_id, tokenizer.unk_token_id),
            (writer.add_pad_token_id, tokenizer.pad_token_id),
        ):
            if token is not None and token < len(self.tokens):
                add(token)
        if isinstance(tokenizer.chat_template, str):
            writer.add_chat_template(tokenizer.chat_template)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """The vocabulary of a model with `size` embeddings.

    Raises a ValueError if llama.cpp would not read texts as the tokenizer does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("its tokenizer has no tokenizer.json")
    spec = json.loads(backend.to_str())
    spec.update(padding=None, truncation=None)
    model, steps = spec["model"], list(_list_steps(spec["pre_tokenizer"], "pretokenizers"))
    if model["type"] != "BPE" or model.get("dropout"):
        raise ValueError(f"its tokenizer is {model['type']}, not BPE")
    if any(model.get(name) for name in _AFFIXES):
        raise ValueError("its tokens have prefixes or suffixes")
    for token in spec["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise ValueError(f"its token {token['content']!r} takes the spaces beside it")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        scheme = _find_scheme(spec, steps)
        if scheme == "first":  # llama.cpp has none or all; the frame writes the first space
            spec["pre_tokenizer"]["prepend_scheme"] = "never"
        found: dict[str, Any] = {"model": "llama", "pre": "default", "merges": []}
        adds_space = scheme == "always"
    else:
        pre = _find_pre_tokenizer(spec, steps)
        found, adds_space = {"model": "gpt2", "pre": pre, "merges": merges}, False
    tokens, kinds = _list_tokens(spec, size)
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        scores=_score(tokens, kinds, merges) if found["model"] == "llama" else [],
        adds_space=adds_space,
        as_read=Tokenizer.from_str(json.dumps(spec)),
        **found,
    )


def _list_steps(part: Any, name: str) -> Iterator[dict[str, Any]]:
    """The steps of a part of tokenizer.json, without those that change offsets alone."""
    if part and part["type"] == "Sequence":
        for step in part[name]:
            yield from _list_steps(step, name)
    elif part:
        yield {key: value for key, value in part.items() if key != "trim_offsets"}


def _find_pre_tokenizer(spec: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """llama.cpp's name for a byte-level pre-tokenizer."""
    if spec["normalizer"]:
        raise ValueError(f"its normalizer, {spec['normalizer']['type']}, is unknown to llama.cpp")
    is_whole = bool(spec["model"].get("ignore_merges"))
    for name, known in _PRE_TOKENIZERS.items():
        if known == (is_whole, steps):
            return name
    raise ValueError(f"its pre-tokenizer is none of {', '.join(_PRE_TOKENIZERS)}")


def _find_scheme(spec: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """Where a SentencePiece tokenizer puts a space before texts: always, first or never."""
    changes = list(_list_steps(spec["normalizer"], "normalizers"))
    if not steps and changes in ([_PREPEND, _REPLACE], [_REPLACE]):
        return "always" if _PREPEND in changes else "never"
    if not changes and len(steps) == 1 and steps[0]["type"] == "Metaspace":
        step = steps[0]
        if step["replacement"] == _SPACE and not step.get("split", True):
            return str(step["prepend_scheme"])
    raise ValueError("its pre-tokenizer is not SentencePiece's")


def _list_tokens(spec: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens and their kinds by id; embeddings without a token get a name."""
    tokens = [f"[PAD{id}]" for id in range(size)]
    kinds = [int(TokenType.UNUSED)] * size
    model = spec["model"]
    for token, id in model["vocab"].items():
        kind = TokenType.NORMAL
        if token == model.get("unk_token"):
            kind = TokenType.UNKNOWN
        elif model.get("byte_fallback") and _BYTE.fullmatch(token):
            kind = TokenType.BYTE
        if id < size:
            tokens[id], kinds[id] = token, int(kind)
    for added in spec["added_tokens"]:
        if added["id"] < size and kinds[added["id"]] != TokenType.UNKNOWN:
            kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
            tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    return tokens, kinds


def _score(tokens: list[str], kinds: list[int], merges: list[str]) -> list[float]:
    """SentencePiece's scores: a token that is merged earlier has a higher one."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [
        -float(ranks.get(token, len(merges))) if kind == TokenType.NORMAL else 0.0
        for token, kind in zip(tokens, kinds, strict=True)
    ]
