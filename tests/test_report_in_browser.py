"""The report in a real Chromium: what a person does with it, and what no model may do in it."""

import shutil
from pathlib import Path

import pytest

from common.report.page import render_report
from common.run.manifest import Manifest
from support.decision_parts import decide_on, make_comparison
from support.report_parts import HISTORY, MANIFESTS, make_metrics, make_tables

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 780}
SHOTS = Path(__file__).parents[1] / "build/report"
"""What the page looks like, for a person."""
ATTACK = (
    "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1; alert(1)'>"
    "<svg onload=alert(1)><a href='javascript:alert(1)'>x</a><!--"
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is on the PATH")

WON = [make_comparison(than, 0.4, 0.3, 0.5) for than in ("copy", "base")]
ROWS = [
    # text, reference, language, base's answer, distilled's, teacher's
    ("He go home.", "He goes home.", "en", "He go home.", "He goes home.", "He goes home."),
    ("We is here.", "We are here.", "en", "We is here.", "We is there.", "We are here."),
    ("Good day.", "Good day.", "en", "Good day.", "Good night.", "Good day."),
    ("Ich gehst.", "Ich gehe.", "de", "Ich gehst.", "Ich gehe.", "Ich ging."),
    ("Er gehe.", "Er geht.", "de", "Er gehe.", "Er gehe.", "Er gehe."),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """`open_page(html)` gives the page; at the end, nothing may have gone wrong in any."""
    wrong, contexts = [], []

    def open_page(html, **options):
        path = tmp_path / "report.html"
        path.write_text(html, "utf-8")
        contexts.append(browser.new_context(offline=True, **({"viewport": DESKTOP} | options)))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda r: r.url != path.as_uri() and wrong.append(r.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def make_html(given=ROWS, sure=None, curve=None, **changes):
    """A page of these rows; `sure` are the student's mean log-probabilities."""
    texts, references, langs, base, distilled, teacher = zip(*given, strict=True)
    answers = {"copy": texts, "base": base, "distilled": distilled, "teacher": teacher}
    tables = make_tables(answers, texts, [[reference] for reference in references], langs)
    metrics = make_metrics(tables)
    if sure:
        for row, logprob in zip(tables["distilled"], sure, strict=True):
            row |= dict.fromkeys(("mean_logprob", "least_logprob", "margin"), logprob)
            row["agreement"] = None
        metrics = decide_on(metrics, comparisons=WON)
    metrics |= changes
    manifests = MANIFESTS | ({"curve": curve} if curve else {})
    return render_report("default", metrics, tables, manifests, HISTORY)


def list_texts(page):
    """The texts of the examples that are shown."""
    return page.locator(".example .answer:nth-of-type(1) .what").all_text_contents()


def get_answer(page, text, who):
    box = page.locator(".example", has_text=text).first
    return box.locator(".answer", has=page.locator(f".who:text('{who}')"))


def test_the_page_loads(open_page):
    page = open_page(make_html())
    assert "Distillation of tiny" in page.title()
    assert page.locator(".card").count() == 4
    assert page.locator("svg polyline").count() == 2
    assert list_texts(page) == [row[0] for row in ROWS]
    assert page.inner_text("#count") == "5 of 5 rows"
    assert not page.is_visible("#more")


def choose_kind(page, name):
    page.get_by_role("button", name=name).click()


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        ("Student right, teacher wrong", [3]),
        ("Student wrong, teacher right", [1, 2]),
        ("Both wrong", [4]),
        ("Both right", [0]),
        ("Student right, base wrong", [0, 3]),
        ("Student spoilt a right text", [2]),
        ("All", [0, 1, 2, 3, 4]),
    ],
)
def test_the_kinds(open_page, chosen, shown):
    page = open_page(make_html())
    choose_kind(page, chosen)
    assert list_texts(page) == [ROWS[i][0] for i in shown]
    assert page.inner_text("#count") == f"{len(shown)} of 5 rows"
    pressed = page.locator("#kinds button[aria-pressed=true]").all_text_contents()
    assert pressed == [f"{chosen} {len(shown)}"]


def test_the_keyboard_chooses_a_kind(open_page):
    page = open_page(make_html())
    page.focus("#kinds button")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert list_texts(page) == [ROWS[3][0]]


def test_confidence_is_shown_and_sorted(open_page):
    sure = [-0.1, -0.5, -0.9, None, -0.2]
    page = open_page(make_html(sure=sure))
    told = page.locator(".sure").all_text_contents()
    assert len(told) == 5
    assert told[0].startswith("confidence 9")
    assert told[0].endswith(": the student answers")
    assert told[3] == "confidence 0%: the teacher answers"
    page.select_option("#order", label="Surest first")
    assert list_texts(page) == [ROWS[i][0] for i in (0, 4, 1, 2, 3)]
    page.select_option("#order", label="Least sure first")
    assert list_texts(page)[0] == ROWS[3][0]


def test_without_confidence_there_is_no_order_to_choose(open_page):
    assert not open_page(make_html()).is_visible("#order")


def test_language_search_and_filter_together(open_page):
    page = open_page(make_html())
    page.select_option("select[name=lang]", label="de")
    assert list_texts(page) == ["Ich gehst.", "Er gehe."]
    choose_kind(page, "Student right, base wrong")
    assert list_texts(page) == ["Ich gehst."]
    page.fill("#search", "nowhere")
    assert list_texts(page) == []
    assert page.inner_text("#count") == "0 of 5 rows"
    page.fill("#search", "")
    choose_kind(page, "All")
    page.select_option("select[name=lang]", label="Any lang")
    page.fill("#search", "  GING ")  # in the teacher's answer
    assert list_texts(page) == ["Ich gehst."]
    page.fill("#search", f"{4:032x}")
    assert list_texts(page) == ["Er gehe."]


def test_what_changed_is_marked_word_by_word(open_page):
    page = open_page(make_html())
    answer = get_answer(page, "He go home.", "Distilled student")
    assert answer.locator("del").all_text_contents() == ["go"]
    assert answer.locator("ins").all_text_contents() == ["goes"]
    assert answer.locator(".what").text_content() == "He gogoes home."
    assert "right" in answer.get_attribute("class")
    unchanged = get_answer(page, "He go home.", "Base student")
    assert unchanged.locator("del, ins").count() == 0
    assert "wrong" in unchanged.get_attribute("class")


def test_differences_lead_from_the_text_to_the_answer(open_page):
    page = open_page(make_html())
    pairs = [
        ["", "new"],
        ["old", ""],
        ["a b c d", "b x d e"],
        ["same same same", "same same"],
        ["She doesn't go, not now", "she doesn’t go; now  now"],
        ["我喜欢猫", "我喜欢狗"],
        ["words " * 3000, "other " * 3000],
    ]
    for before, after in pairs:
        parts = page.evaluate("([a, b]) => diff(a, b)", [before, after])
        assert "".join(text for tag, text in parts if tag != "ins") == before
        assert "".join(text for tag, text in parts if tag != "del") == after
    assert page.evaluate("diff('one two three', 'one too three')") == [
        [None, "one "],
        ["del", "two"],
        ["ins", "too"],
        [None, " three"],
    ]


def test_answers_of_another_kind_are_not_compared_with_the_text(open_page):
    row = ("I like this long film", "positive", "en", "negative", "positive", "positive")
    page = open_page(make_html([row]))
    assert page.locator(".example").count() == 1
    assert page.locator(".example del, .example ins").count() == 0


def test_thousands_of_rows_are_shown_some_at_a_time(open_page):
    rows = [(f"text {i}", "x", "en", "a", "x", "x") for i in range(2000)]
    page = open_page(make_html(rows, rows={"test": 2100}))
    assert page.inner_text("#count") == (
        "2,000 of 2,000 rows, chosen by their hash from 2,100; predictions/ has the others"
    )
    assert page.locator(".example").count() == 5
    page.click("#more")
    assert page.locator(".example").count() == 25
    page.fill("#search", "text 1999")
    assert list_texts(page) == ["text 1999"]
    assert not page.is_visible("#more")


@pytest.mark.parametrize("place", range(6))
def test_no_output_of_a_model_runs(open_page, place):
    rows = [tuple(ATTACK if i == place else part for i, part in enumerate(row)) for row in ROWS[:2]]
    page = open_page(make_html([*rows, *ROWS], task=ATTACK))
    choose_kind(page, "Student wrong, teacher right")
    choose_kind(page, "All")
    page.wait_for_timeout(50)
    assert page.evaluate("window.broken") is None
    assert page.locator("main img, main a, .example svg, main script").count() == 0
    assert page.locator(".example", has_text="window.broken").count() == 2


def test_the_policy_stops_what_escaping_might_miss(open_page, browser, tmp_path):
    html = make_html().replace("<main>", "<main><script>window.broken = 1</script>")
    html = html.replace("</main>", "<b onclick='window.broken = 1' id='bad'>x</b></main>")
    path = tmp_path / "bad.html"
    path.write_text(html, "utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.click("#bad")
    assert page.evaluate("window.broken") is None
    assert page.locator(".example").count() == len(ROWS)
    page.close()


def make_whole():
    """A page with all that a report may have."""
    long = ("Donaudampfschifffahrt" * 20, "x", "en", "y" * 300, "x", "x")
    curve = Manifest("curve", {}, {"points": [(100, 0.5), (200, 0.6)], "held_out": 50})
    return make_html([long, *ROWS], sure=[-0.1, -0.5, -0.9, None, -0.2, -0.3], curve=curve)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_screen_and_scheme(open_page, request, scheme, viewport):
    page = open_page(make_whole(), viewport=viewport, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    background, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    dark, bright = sorted((background, ink), key=lambda c: int(c.split("(")[1].split(",")[0]))
    assert background == (dark if scheme == "dark" else bright)
    shot = SHOTS / f"report-{request.node.callspec.id}.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 20_000


def test_it_prints_in_ink_on_paper_without_its_controls(open_page):
    page = open_page(make_whole(), color_scheme="dark", viewport={"width": 720, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 36, 48)"
    for control in ("#kinds", ".tools", "#more"):
        assert not page.is_visible(control)
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert len(page.pdf(path=SHOTS / "report.pdf", format="A4")) > 20_000


def test_every_control_and_chart_has_a_name(open_page):
    page = open_page(make_whole())
    for control in page.locator("main button, main select, main input, main svg, .bar").all():
        name = control.get_attribute("aria-label") or control.inner_text()
        assert name.strip(), control
