"""A teacher of the student's own family, which tells its likeliest tokens.

It is the student after people's corrections of 1,000 sentences, so that it splits a label as the
student does. Its answers are kept in build/ladder-family.json.
"""

import json
import random
from dataclasses import asdict
from typing import Any

import torch

from common.student.prompt import IGNORED, encode_example, load_tokenizer
from tests.benchmarks.ladder_student import configure, make_row, make_student, train_student
from tests.benchmarks.ladder_tasks import Asked, LadderTask, make_grammar, read_pairs
from tests.benchmarks.measure import BUILD

_TAUGHT, _MOST_ASKED = 1_000, 2_000
_TOP_TOKENS = 5


def load_family(source: str) -> LadderTask:
    """English sentences with that teacher's corrections."""
    path = BUILD / "ladder-family.json"
    rows = read_pairs(source, "test")
    if not path.exists():
        asked = ask_family(source, [text for text, _ in rows])
        path.write_text(json.dumps([asdict(one) for one in asked]) + "\n", "utf-8")
    kept = json.loads(path.read_text("utf-8"))
    asked = [Asked(**one | {"answers": tuple(one["answers"])}) for one in kept]
    pool, test = asked[: -len(rows)], asked[-len(rows) :]
    return make_grammar(pool, rows, [one.answers[0] for one in test])


def ask_family(source: str, test: list[str]) -> list[Asked]:
    """The teacher's answers to texts that it has not learned, and then to the test texts."""
    pairs = read_pairs(source, "train")
    random.Random(0).shuffle(pairs)
    taught = [Asked(text, (right,)) for text, right in pairs[:_TAUGHT]]
    ladder = make_grammar(taught, [], [])
    settings = configure(ladder, {"TRAIN__LORA_RANK": "32", "TRAIN__EPOCHS": "2"})
    model = train_student(settings, ladder, [make_row(ladder, one, one.answers) for one in taught])
    texts = [text for text, _ in pairs[_TAUGHT:][:_MOST_ASKED]] + test
    answers = [r.text for r in make_student(settings, model, ladder).answer(texts)]
    tokenizer = load_tokenizer(settings)
    return [
        Asked(t, (answer,), logprobs=_tell_tokens(model, tokenizer, ladder, t, answer))
        for t, answer in zip(texts, answers, strict=True)
    ]


@torch.inference_mode()
def _tell_tokens(
    model: Any, tokenizer: Any, ladder: LadderTask, text: str, answer: str
) -> dict[str, Any]:
    """The answer's tokens and the likeliest ones in their places, as the chat API tells them."""
    encoded = encode_example(tokenizer, ladder.task, text, answer)
    ids, labels = encoded["input_ids"], encoded["labels"]
    places = [at for at, label in enumerate(labels) if label != IGNORED][:-1]  # without the end
    logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    logprobs = logits[[at - 1 for at in places]].float().log_softmax(-1)
    content = []
    for at, of_place in zip(places, logprobs, strict=True):
        top = of_place.topk(_TOP_TOKENS)
        likely = [
            {"token": tokenizer.decode([token]), "logprob": logprob}
            for token, logprob in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        own = {"token": tokenizer.decode([ids[at]]), "logprob": float(of_place[ids[at]])}
        content.append(own | {"top_logprobs": likely})
    return {"content": content}
