"""What is learned of a text: one label or several, with weights."""

import math
import time

import pytest
import torch

from common.errors import SettingsError
from common.records import LabelRow, hash_text, make_label_table
from common.run.storage import RunStorage
from common.student.prompt import IGNORED, fingerprint_student, load_tokenizer
from common.student.weights import load_weights
from common.tasks.task import Task, load_task
from common.training.lora import choose_rate, settle_rate
from common.training.objectives.supervised import Supervised, compute_logits
from common.training.objectives.targets import list_targets
from common.training.objectives.top_tokens import TopTokens
from common.training.train_set import load_train_set
from jobs.train import make_objective

MOODS = ("positive", "neutral", "negative")
ROW = LabelRow(hash_text("a"), "a", "ok", "positive", agreement=0.6, samples=5)
SAMPLED = {"labels": ["positive", "neutral"], "shares": [0.75, 0.25]}


def make_row(**fields):
    return LabelRow(**vars(ROW) | fields)


def make_first_token(**probabilities):
    return {
        "top_tokens": [list(probabilities), ["."]],
        "top_logprobs": [[math.log(p) for p in probabilities.values()], [0.0]],
        "token_logprobs": [math.log(0.5), math.log(0.125)],
    }


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("label", SAMPLED, {"positive": 1.0}),
        ("weighted", SAMPLED, {"positive": 0.75}),
        ("shares", SAMPLED, {"positive": 0.75, "neutral": 0.25}),
        ("shares", {}, {"positive": 1.0}),
        ("weighted", {}, {"positive": 1.0}),
        # by the first token, in any case and with its space; the rest of the probability is shared
        (
            "shares",
            make_first_token(**{" Pos": 0.6, "neg": 0.15, "x": 0.05}),
            {"positive": 0.8, "negative": 0.2},
        ),
        ("weighted", make_first_token(pos=0.6, neg=0.2), {"positive": 0.75}),
        # "ne" is both neutral and negative, and tells nothing
        ("shares", make_first_token(pos=0.6, neu=0.2, ne=0.2), {"positive": 0.75, "neutral": 0.25}),
        ("shares", make_first_token(pos=0.4, ne=0.6), {"positive": 1.0}),
        ("weighted", make_first_token(pos=0.4, ne=0.6), {"positive": 0.25}),
        # an answer that begins otherwise: "The mood is positive."
        ("shares", make_first_token(The=0.9, pos=0.1), {"positive": 1.0}),
    ],
)
def test_targets_are_the_labels_by_their_shares(kind, fields, expected):
    assert dict(list_targets(make_row(**fields), MOODS, kind)) == pytest.approx(expected)


def test_weights_scale_the_loss_packed_or_padded(settings, monkeypatch):
    own = settings(STUDENT__MODEL="builtin")
    tokenizer = load_tokenizer(own)
    model = load_weights(own).eval()
    plain = Supervised(load_task("gec"), tokenizer)
    shared = Supervised(load_task("gec"), tokenizer, "shares")
    row = make_row(
        text="the dog", label="The dog.", labels=["The dog.", "A dog."], shares=[0.7, 0.3]
    )
    one, other = shared.encode_targets(row)
    assert set(one["weights"]) == {0.7}

    def measure(objective, rows):
        with torch.inference_mode():
            return float(objective.sum_loss(model, objective.collate(rows)))

    rows = [make_row(text="the dog", label=label) for label in row.labels]
    first, second = (measure(plain, [plain.encode(row)]) for row in rows)
    assert measure(shared, [one, other]) == pytest.approx(0.7 * first + 0.3 * second, rel=0.02)
    shared._can_pack = True
    monkeypatch.setattr("common.training.objectives.packing._MOST_SHARE", 2)
    assert "position_ids" in shared.collate([one, other])
    assert measure(shared, [one, other]) == pytest.approx(0.7 * first + 0.3 * second, rel=0.02)
    assert "weights" not in plain.collate([plain.encode(row)])


def test_edits_weigh_more_and_so_does_what_closes_a_gap(settings):
    own = settings(STUDENT__MODEL="builtin")
    tokenizer = load_tokenizer(own)
    objective = Supervised(load_task("gec"), tokenizer, edit_weight=3.0)
    row = make_row(text="The old old man sleep here.", label="The old man sleeps here.")
    (encoded,) = objective.encode_targets(row)
    learned = [token for token in encoded["labels"] if token != IGNORED]
    heavy = [
        tokenizer.decode([token])
        for token, weight in zip(learned, encoded["weights"], strict=True)
        if weight == 3.0
    ]
    text = "".join(heavy)
    assert "s" in text
    assert "here" not in text
    same = make_row(text="The old man.", label="The old man.")
    (encoded,) = objective.encode_targets(same)
    assert set(encoded["weights"]) == {1.0}


def test_edits_of_long_texts_are_weighed_in_a_moment(settings):
    tokenizer = load_tokenizer(settings(STUDENT__MODEL="builtin"))
    objective = Supervised(load_task("gec"), tokenizer, edit_weight=3.0)
    text = "the old man sleeps in a big house, " * 2000
    begun = time.process_time()
    (encoded,) = objective.encode_targets(make_row(text=text, label=text.replace("big", "small")))
    assert time.process_time() - begun < 8
    assert set(encoded["weights"]) == {1.0, 3.0}


def test_the_reasoning_is_a_second_target_that_weighs_as_much(settings, caplog):
    own = settings(STUDENT__MODEL="builtin", TRAIN__HELD_OUT=0)
    storage, tokenizer = RunStorage(own), load_tokenizer(own)
    task = Task(name="mood", student={"prompt": "Mood: {text}", "rationale": "Why: {text}"})
    objective = Supervised(task, tokenizer)
    row = make_row(reasoning="It praises the actors, and the end. ")
    label, reason = objective.encode_targets(row)
    assert tokenizer.decode(label["input_ids"]).endswith("Mood: a<|assistant|>positive</s>")
    assert "Why: a<|assistant|>It praises the actors, and the end.</s>" in tokenizer.decode(
        reason["input_ids"]
    )
    assert sum(reason["weights"]) == pytest.approx(sum(label["weights"]))
    (alone,) = objective.encode_targets(ROW)
    assert alone == label
    storage.write_table(
        "labels/part-0.parquet", make_label_table([row, make_row(id=hash_text("b"))])
    )
    found = load_train_set(own, storage, ["labels/part-0.parquet"], objective)
    assert found.counts["targets"] == 3
    assert "1 of 2 labels have no reasoning" in caplog.text
    assert "student.rationale" in fingerprint_student(own, task, tokenizer)
    with pytest.raises(SettingsError, match=r"student\.rationale"):
        make_objective(settings(TRAIN__TARGETS="tokens", TRAIN__EDIT_WEIGHT="1"), task, tokenizer)


def test_the_teachers_likeliest_tokens_are_learned_where_they_are_the_students(settings):
    own = settings(STUDENT__MODEL="builtin")
    tokenizer, model = load_tokenizer(own), load_weights(own).eval()
    objective = TopTokens(load_task("gec"), tokenizer)
    ids = tokenizer("The dog.", add_special_tokens=False).input_ids
    tokens = [token.replace("Ġ", " ") for token in tokenizer.convert_ids_to_tokens(ids)]
    top = [[token, " other nonsense", tokens[0]] for token in tokens]
    spread = [[math.log(0.6), math.log(0.2), math.log(0.2)]] * len(tokens)
    told = {"tokens": tokens, "top_tokens": top, "top_logprobs": spread}
    row = make_row(text="the dog", label="The dog.", **told)
    (encoded,) = objective.encode_targets(row)
    assert encoded["likely"][1] == [ids[1], ids[0]]
    assert encoded["shares"][1] == pytest.approx([0.75, 0.25])
    assert (encoded["likely"][-1], encoded["shares"][-1]) == ([tokenizer.eos_token_id], [1.0])
    (plain,) = objective.encode_targets(make_row(text="the dog", label="The dog."))
    # a server may write a space before the first token, which the student's has not
    spaced = [" " + name for name in top[0]]
    shifted = told | {"tokens": [" " + tokens[0], *tokens[1:]], "top_tokens": [spaced, *top[1:]]}
    assert objective.encode_targets(make_row(text="the dog", label="The dog.", **shifted)) == [
        encoded
    ]
    other = make_row(text="the dog", label="The dog.", **told | {"tokens": ["T", "he", " dog."]})
    assert objective.encode_targets(other) == [plain]
    batch = objective.collate([encoded, plain])
    with torch.inference_mode():
        loss = objective.sum_loss(model, batch)
        logprobs = compute_logits(model, batch).log_softmax(-1)
    own_token = -logprobs.gather(1, batch["labels"][:, None])[:, 0]
    first_token = -logprobs[: len(ids), ids[0]]
    soft = 0.75 * own_token[: len(ids)] + 0.25 * first_token
    soft[0] = own_token[0]  # its likeliest tokens are one and the same
    expected = own_token.sum() - own_token[: len(ids)].sum() / 2 + soft.sum() / 2
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)


def test_all_targets_of_a_text_are_trained_on_or_held_out_together(settings):
    own = settings(STUDENT__MODEL="builtin", TRAIN__TARGETS="shares", TRAIN__HELD_OUT=4)
    storage, tokenizer = RunStorage(own), load_tokenizer(own)
    rows = [LabelRow(hash_text(str(i)), str(i), "ok", "positive", samples=2) for i in range(40)]
    rows = [LabelRow(**vars(row) | SAMPLED) for row in rows]
    storage.write_table("labels/part-0.parquet", make_label_table(rows))
    objective = Supervised(Task(name="mood"), tokenizer, "shares")
    found = load_train_set(own, storage, ["labels/part-0.parquet"], objective)
    assert found.counts == {"labels": 36, "held_out": 4, "dropped_too_long": 0, "targets": 72}
    assert len(found.labels) == 72
    assert len(found.held_out) == 4


def test_targets_that_no_label_tells_are_refused(settings, caplog):
    own = settings(STUDENT__MODEL="builtin", TRAIN__TARGETS="weighted")
    storage, tokenizer = RunStorage(own), load_tokenizer(own)
    objective = Supervised(Task(name="mood"), tokenizer, "weighted")
    plain = [LabelRow(hash_text(str(i)), str(i), "ok", "positive", samples=1) for i in range(4)]
    storage.write_table("labels/part-0.parquet", make_label_table(plain))
    with pytest.raises(SettingsError, match=r"TARGETS='weighted' needs .* DISTILL_LABEL__SAMPLES"):
        load_train_set(own, storage, ["labels/part-0.parquet"], objective)
    rows = [LabelRow(**vars(plain[0]) | SAMPLED), *plain[1:]]
    storage.write_table("labels/part-0.parquet", make_label_table(rows))
    load_train_set(own, storage, ["labels/part-0.parquet"], objective)
    assert "3 of 4 labels do not tell shares" in caplog.text
    with pytest.raises(SettingsError, match="EDIT_WEIGHT=1"):
        settings(TRAIN__TARGETS="tokens", TRAIN__EDIT_WEIGHT="2")


@pytest.mark.parametrize(("width", "rate"), [(192, 3.1e-3), (576, 1.3e-3), (2048, 4.9e-4)])
def test_the_learning_rate_falls_with_the_width(width, rate):
    assert choose_rate(width) == rate
    assert choose_rate(896, "qwen2") == 5.3e-4  # Qwens' hardly falls


def test_a_rate_that_is_set_stays(settings):
    own = settings(STUDENT__MODEL="builtin", TRAIN__PRESET="default")
    assert own.train.learning_rate is None
    assert settle_rate(own).train.learning_rate == 3.1e-3
    assert settle_rate(own, 5e-4).train.learning_rate == 5e-4
    set_by_user = settings(TRAIN__LEARNING_RATE="1e-4")
    assert settle_rate(set_by_user, 5e-4).train.learning_rate == 1e-4
