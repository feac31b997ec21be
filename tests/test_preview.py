"""The look at a new prompt: what is shown, what is kept."""

import json

from common.labels.preview import format_preview
from common.records import LabelRow
from support.commands import run_job
from support.fake_teacher import running_teacher


def test_texts_answers_and_labels_stand_side_by_side():
    rows = [
        LabelRow("1", "a text of some length", "ok", "label", response="**label**"),
        LabelRow("2", "other", "filtered", error="pattern", response="Sure: yes"),
        LabelRow("3", "third", "failed", error="length", message="cut off"),
        LabelRow("4", "fourth", "ok", "x", response="x", samples=4, agreement=0.75),
    ]
    lines = format_preview(rows, width=52).splitlines()
    assert lines == [
        "TEXT              ANSWER            LABEL",
        "",
        "-- 1: ok",
        "a text of some    **label**         label",
        "length",
        "",
        "-- 2: filtered (pattern)",
        "other             Sure: yes",
        "",
        "-- 3: failed (length: cut off)",
        "third",
        "",
        "-- 4: ok, 75% of 4 samples",
        "fourth            x                 x",
        "",
        "2 ok, 1 failed, 1 filtered",
    ]


def test_a_preview_asks_for_its_rows_alone_and_keeps_their_replies(tmp_path):
    source = tmp_path / "texts.jsonl"
    texts = [json.dumps({"text": f"text number {i:02}"}) for i in range(40)]
    source.write_text("\n".join(texts), "utf-8")
    (tmp_path / "prices.toml").write_text(
        '[[price]]\nmodel = "big"\ninput = 1000\noutput = 0\n', "utf-8"
    )
    with running_teacher(lambda text, call: text.upper()) as teacher:
        settings = {
            "DATA__SOURCE": source,
            "DATA__TEXT_COLUMN": "text",
            "TEACHER__BASE_URL": teacher.url,
            "TEACHER__MODEL": "big",
            "TEACHER__PRICES": tmp_path / "prices.toml",
        }
        seen = run_job("label", tmp_path, "--preview", "4", **settings)
        assert seen.returncode == 0, seen.stderr
        assert len(teacher.bodies) == 4
        assert seen.stdout.count("TEXT NUMBER") == 8  # answer and label
        assert "4 ok, 0 failed, 0 filtered" in seen.stdout
        # 10 tokens a prompt, as measured
        assert "calls   36\n" in seen.stdout
        assert "about 360 in, " in seen.stdout
        assert "$0.04 by this run so far" in seen.stdout
        assert not (tmp_path / "runs/default/labels").exists()
        done = run_job("label", tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        assert len(teacher.bodies) == 40

        wrong = run_job("label", tmp_path, "--preview", "x", **settings)
        assert wrong.returncode == 2
        assert "DISTILL_LABEL__PREVIEW='x'" in wrong.stderr


def test_a_long_text_is_cut_short():
    row = LabelRow("1", "word " * 1_000, "ok", "label", response="answer")
    lines = format_preview([row], width=120).splitlines()
    assert len(lines) < 20
    assert "…" in lines[-3]
