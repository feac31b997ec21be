import copy
import html
import json
import re
import threading
from html.parser import HTMLParser
from urllib.error import HTTPError
from urllib.request import urlopen

import pyarrow as pa
import pytest

from common.errors import InputError, SettingsError
from common.report.answers import choose_rows
from common.report.frame import read_template
from common.report.page import render_report
from common.report.server import make_server
from common.report.tables import Scores, make_comparisons, make_metrics_table
from common.report.text import escape, render_text
from common.run.manifest import Manifest
from common.run.storage import RunStorage
from jobs import report
from support.decision_parts import decide_on, make_cascade
from support.report_parts import HISTORY, MANIFESTS, SYSTEMS, make_metrics, make_tables, render

NASTY = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><i onclick="alert(1)">',
    "<!--examples--><!--run-->",
    "<!-- <script>",
    "&lt;script&gt; \u2028 \\u003c",
]
RICH = {
    "metrics": {
        "exact_match": {"title": "Exact match", "is_share": True},
        "edits": {"title": "Edits left", "is_share": False},
    },
    "comparisons": [
        {
            "system": "distilled",
            "than": "base",
            "metric": "exact_match",
            "difference": 0.66,
            "interval": [0.6, 0.7],
            "p_value": 1e-9,
            "smallest": 0.02,
        },
        {
            "system": "distilled",
            "than": "teacher",
            "metric": "edits",
            "difference": -0.25,
            "interval": [-0.5, 0.125],
            "p_value": 0.25,
            "smallest": None,
        },
    ],
    "retention_interval": [0.7, 0.8],
    "agreement": {"distilled": {"value": 0.81, "n": 4, "interval": [0.7, 0.9]}},
}


class Page(HTMLParser):
    """The tags and attributes of a page, and the text of its elements with an id."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.by_id, self._id = [], set(), {}, None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._id = dict(attrs).get("id")

    def handle_data(self, data):
        self.by_id[self._id] = self.by_id.get(self._id, "") + data


def get_data(page):
    return json.loads(Page(page).by_id["data"])


def get_text(page):
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


def make_plain(texts=("one", "two"), answers=None):
    given = {s: ["no"] * len(texts) if s == "base" else list(texts) for s in SYSTEMS}
    tables = make_tables(given | (answers or {}), texts, [[t] for t in texts], ["a", "b"])
    return make_metrics(tables), tables


def make_rich():
    """All that metrics.json may have."""
    metrics, tables = make_plain(answers={"merged": ["one", "no"], "base_few_shot": ["no", "two"]})
    for name, system in metrics["systems"].items():
        system["edits"] = {"value": None if name == "base" else 0.125, "n": 2}
    metrics["systems"]["merged"] |= {"tokens_per_second": 1234.5, "precision": "bf16"}
    return metrics | copy.deepcopy(RICH), tables


def test_the_main_figures_are_shown():
    page = render(["one", "two"])
    text = get_text(page)
    for part in (
        "The student may not replace the teacher: it is no better than copying the input.",
        "The distilled student scores 100.0%, the teacher 100.0%: it keeps 75% of the teacher",
        "90.0–100.0%",
        "2 test rows, evaluated 2026-11-23 18:47:16 UTC",
        "Exact match by lang",
        "4,000 ok, 1 failed, 2 filtered",
        "$2.00, $0.50 for 1,000 examples",
        "90%: the limits allow no less than 90.0 s",
        "few rows",
        "kept: 20",
    ):
        assert part in text
    assert "polyline" in Page(page).tags


def test_the_answers_are_given_to_the_page():
    data = get_data(render(["one", "two"]))
    assert [system["key"] for system in data["systems"]] == ["base", "distilled", "teacher"]
    assert data["groups"] == {"lang": ["a", "b"]}
    assert data["total"] == 2
    assert data["rows"][1] == {
        "id": f"{1:032x}",
        "text": "two",
        "references": ["two"],
        "groups": {"lang": "b"},
        "answers": {
            "base": {"text": "no", "is_right": False, "error": None},
            "distilled": {"text": "two", "is_right": True, "error": None},
            "teacher": {"text": "two", "is_right": True, "error": None},
        },
    }


def test_of_very_many_rows_some_are_given_whatever_their_order():
    rows = [{"id": f"{i * 7919 % 2100:04}", "text": str(i)} for i in range(2100)]
    chosen = choose_rows(pa.Table.from_pylist(rows))
    assert chosen == [row for row in rows if row["id"] < "2000"]
    assert choose_rows(pa.Table.from_pylist(rows[:50])) == rows[:50]
    assert 0 < len(get_data(render(["long " * 100_000] * 10))["rows"]) < 10


@pytest.mark.parametrize(
    ("text", "reference", "rewrites"),
    [("He go to school.", "He goes to school.", True), ("I like this film", "positive", False)],
)
def test_whether_answers_are_changed_texts(text, reference, rewrites):
    tables = make_tables({s: [reference] for s in SYSTEMS}, [text], [[reference]], ["en"])
    page = render_report("run", make_metrics(tables), tables, {}, [])
    assert get_data(page)["rewrites"] is rewrites


def test_every_system_and_metric_there_is():
    metrics, tables = make_rich()
    table = make_metrics_table(Scores(metrics))
    assert table.head == [
        "System",
        "Exact match",
        "Edits left",
        "Agreement with the teacher",
        "Tokens a second",
        "Weights",
    ]
    assert [row[0].text for row in table.rows] == [
        "Copying the input",
        "Base student",
        "Base student, few-shot",
        "Distilled student",
        "Distilled student, merged",
        "Teacher",
    ]
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert cells["Base student"] == ["0.0%", "–", "", "", ""]
    assert cells["Distilled student"] == ["100.0%", "0.125", "81.0%", "", ""]
    assert cells["Distilled student, merged"] == ["50.0%", "0.125", "", "1,234", "bf16"]
    page = get_text(render_report("run", metrics, tables, MANIFESTS, HISTORY))
    for row in table.rows:
        assert row[0].text in page
    assert "70.0–80.0%" in page


def test_a_system_of_another_name_comes_last():
    metrics, tables = make_plain(answers={"<i>": ["one", "two"]})
    assert Scores(metrics).systems == [*SYSTEMS, "<i>"]
    assert "i" in Page(render_report("run", metrics, tables, {}, [])).tags  # of the bars
    assert "<i>" not in render_report("run", metrics, tables, {}, [])


def test_comparisons():
    metrics, _ = make_rich()
    (shares,), (numbers,) = (make_comparisons(Scores(metrics), m).rows for m in (True, False))
    assert [(cell.text, cell.note) for cell in shares] == [
        ("Distilled student – base student", "Exact match"),
        ("+66.0 points", "+60.0 to +70.0"),
        ("< 0.0001", ""),
        ("2.0 points", ""),
    ]
    assert [cell.text for cell in numbers][1:] == ["−0.250", "0.25", "–"]


def test_the_text_has_the_same_figures():
    metrics, _ = make_rich()
    text = render_text("my run", metrics, MANIFESTS)
    assert text.startswith(
        "# Distillation of tiny: my run\n\nThe student may not replace the teacher: it is no better"
    )
    for part in (
        "| Teacher                   | 100.0% (90.0–100.0%) | 0.125",
        "- Better than: It beats the base student by 66.0 points",
        "| +66.0 points (+60.0 to +70.0) | < 0.0001 | 2.0 points",
        "75.0% (70.0–80.0%)",
        "## Exact match by lang",
        "| a (1 row, few) |",
        "- Cost: $2.00, $0.50 for 1,000 examples",
    ):
        assert part in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1


def test_the_text_has_the_decision_too():
    metrics, _ = make_rich()
    text = render_text("run", decide_on(metrics), MANIFESTS)
    assert re.search(r"\| 50% +\| 89.5%", text)
    assert "expected calibration error" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", "a\\|b"),
        ("<script>", "\\<script>"),
        ("p < 1 & 2", "p < 1 & 2"),
        ("&lt;", "\\&lt;"),
        ("[x](y) `z` *w*", "\\[x\\](y) \\`z\\` \\*w\\*"),
        ("two\nlines\x1b[31m\u202e", "two lines \\[31m "),
    ],
)
def test_nothing_is_markup_in_the_text(text, escaped):
    assert escape(text) == escaped


def test_a_main_metric_that_is_no_share():
    metrics, tables = make_rich()
    metrics |= {"main_metric": "edits", "gain": -0.5, "retention": None}
    for of in metrics["systems"].values():
        of["groups"]["lang"] = {lang: {"edits": of["edits"]} for lang in ("a", "b")}
    metrics["systems"]["teacher"]["edits"] = {"value": 4.0, "n": 2, "interval": [3.0, 5.0]}
    page = render_report("run", metrics, tables, {}, [])
    text = get_text(page)
    assert "The distilled student scores 0.125, the teacher 4.000." in text
    assert "81.0%" in text  # the agreement is a share all the same
    assert 'title="Teacher: 4.000 (3.000–5.000)"' in page
    assert '<i style="width:80.0%"></i><b style="left:60.0%;width:40.0%"></b>' in page
    assert "Base student: –" not in page


def test_the_order_is_decision_systems_charts_answers_figures_method():
    metrics, tables = make_rich()
    curve = Manifest("curve", {}, {"points": [(100, 0.5), (200, 0.6)], "held_out": 50})
    page = render_report(
        "run", decide_on(metrics), tables, MANIFESTS | {"curve": curve}, list(HISTORY)
    )
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Exact match of all systems",
        "What more labels would bring",
        "Student first, teacher for the rest",
        "Does the student know when it is right?",
        "Answers side by side",
        "Exact match by lang",
        "All metrics",
        "Differences between systems",
        "Costs",
        "Training",
        "Method",
    ]
    assert page.index('class="lead"') < page.index("<h2>")
    for text in ("Saved for a million inputs", "$900", "on 400 unseen rows", "1,000 more"):
        assert text in page
    assert page.count("<svg") == 6


def test_the_student_tells_how_sure_it_is():
    metrics, tables = make_plain()
    sure = {"mean_logprob": -0.1, "least_logprob": -0.2, "margin": 0.5, "agreement": None}
    unsure = dict.fromkeys(sure)
    rows = [row | of for row, of in zip(tables["distilled"], (sure, unsure), strict=True)]
    data = get_data(render_report("run", decide_on(metrics), tables | {"distilled": rows}, {}, []))
    first, second = (row["confidence"] for row in data["rows"])
    assert 0 < first < 1
    assert second == 0  # there is no answer
    assert data["threshold"] == 0.8
    held_not = decide_on(metrics, make_cascade(holds=False))
    assert get_data(render_report("run", held_not, tables, {}, []))["threshold"] is None


def test_predictions_of_an_older_version_have_no_confidence():
    metrics, tables = make_plain()
    data = get_data(render_report("run", decide_on(metrics), tables, {}, []))
    assert data["threshold"] is None
    assert "confidence" not in data["rows"][0]


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("place", ["texts", "langs", "run", "task", "fact"])
def test_nothing_becomes_markup(place, nasty):
    plain = Page(render(["one", "two"]))
    given = {"texts": ["one", "two"]}
    given |= {place: [nasty, "other"] if place in ("texts", "langs") else nasty}
    page = render(**given)
    parsed = Page(page)
    assert parsed.tags == plain.tags
    assert parsed.attributes == plain.attributes
    assert [row["text"] for row in get_data(page)["rows"]] == given["texts"]


@pytest.mark.parametrize("nasty", NASTY)
def test_the_data_cannot_end_its_script_element(nasty):
    page = render([nasty, "other"])
    embedded = re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in embedded
    assert json.loads(embedded) == get_data(page)
    assert get_data(page)["rows"][0]["answers"]["teacher"]["text"] == nasty


def test_the_page_needs_no_network():
    page = render(["one", "two"])
    assert not re.search(r"https?://|//[\w-]+\.", page)
    assert not {"src", "href", "srcset", "action"} & Page(page).attributes
    assert "@import" not in page
    assert "url(" not in page


def measure_contrast(one, other):
    """The ratio of WCAG 2.2 between two colours such as #1b2430 or #fff."""

    def measure(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, bright = sorted((measure(one), measure(other)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_the_paper(scheme):
    """WCAG AA: 4.5 for text, 3 for what is drawn."""
    style = re.findall(r":root {(.*?)}", read_template("css"), re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", style))
    for name in ("ink", "soft", "added", "cut"):
        for paper in ("paper", "panel"):
            assert measure_contrast(colours[name], colours[paper]) >= 4.5, (name, paper)
    assert measure_contrast(colours["added"], colours["added-paper"]) >= 4.5
    assert measure_contrast(colours["cut"], colours["cut-paper"]) >= 4.5
    for name in ("copy", "base", "base_few_shot", "distilled", "merged", "teacher", "other"):
        assert measure_contrast(colours[name], colours["paper"]) >= 3, name


@pytest.mark.parametrize(
    "history",
    [[], [{"step": 1, "loss": 1.0}], [{"train_runtime": 3.0}], [{"step": 1, "loss": None}] * 2],
)
def test_a_run_without_a_training_curve(history):
    assert "polyline" not in Page(render(["one"], history=history)).tags


def test_each_thing_that_was_measured_has_its_curve():
    measured = [{"step": i, "eval_agreement": i / 40, "eval_loss": 1.0} for i in (15, 30)]
    lost = {"step": 25, "loss": float("nan"), "learning_rate": float("inf")}
    page = render(["one"], history=[*HISTORY, lost, *measured, {"step": 30, "train_loss": 1.0}])
    titles = re.findall(r'<svg [^>]*aria-label="([^"]*)"', page)
    assert titles == ["Loss", "Agreement with the teacher on held-out labels", "Learning rate"]
    assert page.count("<polyline") == 4
    assert "80%" in page
    assert not re.search(r'points="[^"]*(nan|inf)', page)


def test_a_long_history_is_thinned():
    page = render(["one"], history=[{"step": i, "loss": 1.0} for i in range(50_000)])
    points = re.search(r'points="([^"]*)"', page)[1].split()
    assert 200 < len(points) < 400
    assert points[-1].startswith("388.0,")


def test_the_settings_are_listed_with_the_versions():
    text = get_text(render(["one", "two"]))
    assert "settings.teacher.model" in text
    assert "big-model" in text
    assert "distill 0.1.0" in text


def test_the_job_writes_the_page_and_the_text(settings, capsys):
    metrics, tables = make_rich()
    storage = RunStorage(settings())
    storage.write_json("metrics.json", metrics)
    for system, rows in tables.items():
        table = pa.Table.from_pylist(rows).replace_schema_metadata({"distill.fingerprint": "{}"})
        storage.write_table(f"predictions/{system}.parquet", table)
    for step, manifest in MANIFESTS.items():
        storage.write_json(f"{step}/_manifest.json", manifest.to_json())
    history = "".join(json.dumps(entry) + "\n" for entry in HISTORY)
    storage.write_bytes("adapter/history.jsonl", history.encode() + b'{"step": 3, "lo')
    report.main(settings())
    page, text = (storage.read_bytes(f"report.{kind}").decode() for kind in ("html", "md"))
    assert page.startswith("<!doctype html>")
    assert page.count("<polyline") == 2
    printed = capsys.readouterr().out
    assert "| Distilled student, merged | 50.0%" in printed
    assert printed.split("| System")[0] in text
    for kind in ("html", "md"):
        assert f"{storage.url}/report.{kind}" in printed

    made_again = table.replace_schema_metadata({"distill.fingerprint": '{"test_rows": "9"}'})
    storage.write_table("predictions/base.parquet", made_again)
    with pytest.raises(InputError, match=r"predictions/base\.parquet is not what was scored"):
        report.main(settings())
    storage.write_json("metrics.json", {})
    with pytest.raises(InputError, match=r"metrics\.json is damaged.*task: Field required"):
        report.main(settings())
    storage.write_bytes("metrics.json", b"{")
    with pytest.raises(InputError, match=r"metrics\.json is damaged.*delete that file"):
        report.main(settings())


def test_a_run_that_was_not_evaluated_has_no_report(settings):
    with pytest.raises(InputError, match=r"run python -m jobs.evaluate first"):
        report.main(settings())


def test_the_report_is_served(settings):
    storage = RunStorage(settings())
    storage.write_bytes("report.html", "<p>ü</p>".encode())
    with make_server(storage, "localhost:0") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        try:
            with urlopen(f"http://localhost:{port}/") as response:
                assert response.read().decode() == "<p>ü</p>"
                assert response.headers["Content-Type"] == "text/html; charset=utf-8"
            for path in ("report.md", "../metrics.json", "labels/_manifest.json"):
                with pytest.raises(HTTPError, match="404") as caught:
                    urlopen(f"http://localhost:{port}/{path}")
                caught.value.close()
            with pytest.raises(SettingsError, match="DISTILL_REPORT__SERVE"):
                make_server(storage, f"localhost:{port}")
        finally:
            server.shutdown()
            thread.join()
