import json
import re
from html.parser import HTMLParser

import pytest

from common.data import TestRow, TestRows
from common.evaluation import SYSTEMS, score_systems
from common.report import render_report
from common.tasks import Task

TASK = Task(name="tiny")
NASTY = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><i onclick="alert(1)">',
    "<!--examples--><!--run-->",
    "<!-- <script>",
    "&lt;script&gt; \u2028 \\u003c",
]


class Page(HTMLParser):
    """The tags and attributes of a page, and the text of its elements with an id."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.by_id, self._id = [], set(), {}, None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._id = dict(attrs).get("id")

    def handle_data(self, data):
        self.by_id[self._id] = self.by_id.get(self._id, "") + data


def render(texts, groups=("a", "b"), run="default", facts=None, history=()):
    rows = [
        TestRow(str(i), text, [text], {"lang": groups[i % len(groups)]})
        for i, text in enumerate(texts)
    ]
    predictions = {system: texts if system != "base" else ["no"] * len(texts) for system in SYSTEMS}
    metrics = score_systems(TASK, TestRows(rows, 0, 0), predictions)
    tables = {
        system: [
            {"text": row.text, "references": row.references, "prediction": prediction}
            for row, prediction in zip(rows, predictions[system], strict=True)
        ]
        for system in SYSTEMS
    }
    manifests = {"labels": {"fingerprint": facts or {}}, "adapter": {}, "predictions": {}}
    return render_report(run, metrics, tables, manifests, list(history))


def get_examples(html):
    return json.loads(Page(html).by_id["data"])


def test_the_main_figures_are_shown():
    html = render(["one", "two"], history=[{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.0}])
    page = Page(html)
    assert "100.0%" in html
    assert "100.0 points" in html
    assert "polyline" in page.tags
    assert "By lang" in html
    assert get_examples(html)[1] == {
        "text": "two",
        "reference": "two",
        "base": "no",
        "distilled": "two",
        "teacher": "two",
        "right": ["distilled", "teacher"],
    }


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("place", ["texts", "groups", "run", "facts"])
def test_nothing_becomes_markup(place, nasty):
    plain, facts = Page(render(["one", "two"], facts={"key": "value"})), {nasty: nasty}
    value = facts if place == "facts" else nasty if place == "run" else [nasty, "other"]
    given = {"texts": ["one", "two"], "facts": {"key": "value"}} | {place: value}
    html = render(**given)
    page = Page(html)
    assert page.tags == plain.tags
    assert page.attributes == plain.attributes
    assert [row["text"] for row in get_examples(html)] == given["texts"]


@pytest.mark.parametrize("nasty", NASTY)
def test_the_data_cannot_end_its_script_element(nasty):
    html = render([nasty, "other"])
    embedded = re.search(r'<script id="data"[^>]*>(.*?)</script>', html, re.DOTALL)[1]
    assert "<" not in embedded
    assert json.loads(embedded) == get_examples(html)
    assert get_examples(html)[0]["teacher"] == nasty


def test_the_page_needs_no_network():
    html = render(["one", "two"], history=[{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.0}])
    assert not re.search(r"https?://|//[\w-]+\.", html)
    assert not {"src", "href", "srcset", "action"} & Page(html).attributes
    assert "@import" not in html
    assert "url(" not in html


@pytest.mark.parametrize("history", [[], [{"step": 1, "loss": 1.0}], [{"train_runtime": 3.0}]])
def test_a_run_without_a_training_curve(history):
    assert "polyline" not in Page(render(["one"], history=history)).tags


def test_each_thing_that_was_measured_has_its_curve():
    losses = [{"step": 10 * i, "loss": 2.0 / i, "learning_rate": 1e-3} for i in (1, 2, 3)]
    measured = [{"step": i, "eval_agreement": i / 40, "eval_loss": 1.0} for i in (15, 30)]
    page = render({}, history=[*losses, *measured, {"step": 30, "train_loss": 1.0}])
    for title in ("Loss on the labels that are learned", "Agreement with the teacher", "Learning"):
        assert f'aria-label="{title}' in page
    assert "75%" in page
    assert "GPU memory" not in page
