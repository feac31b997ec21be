"""The report in a real Chromium: what a person does with it, and what no model may do in it."""

import shutil

import pytest

from common.report.page import render_report
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
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
ATTACK = (
    "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1; alert(1)'>"
    "<svg onload=alert(1)><a href='javascript:alert(1)'>x</a><!--"
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is on the PATH")

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


def make_html(given=ROWS, **changes):
    texts, references, langs, base, distilled, teacher = zip(*given, strict=True)
    answers = {"copy": texts, "base": base, "distilled": distilled, "teacher": teacher}
    tables = make_tables(answers, texts, [[reference] for reference in references], langs)
    metrics = make_metrics(tables) | changes
    return render_report("default", metrics, tables, MANIFESTS, HISTORY)


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


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        ("Student right where base was wrong", [0, 3]),
        ("Student wrong where the teacher was right", [1, 2]),
        ("Student spoilt a right text", [2]),
        ("Student and teacher both wrong", [4]),
        ("All answers", [0, 1, 2, 3, 4]),
    ],
)
def test_the_filter(open_page, chosen, shown):
    page = open_page(make_html())
    page.select_option("#filter", label=chosen)
    assert list_texts(page) == [ROWS[i][0] for i in shown]
    assert page.inner_text("#count") == f"{len(shown)} of 5 rows"


def test_language_search_and_filter_together(open_page):
    page = open_page(make_html())
    page.select_option("select[name=lang]", label="de")
    assert list_texts(page) == ["Ich gehst.", "Er gehe."]
    page.select_option("#filter", label="Student right where base was wrong")
    assert list_texts(page) == ["Ich gehst."]
    page.fill("#search", "nowhere")
    assert list_texts(page) == []
    assert page.inner_text("#count") == "0 of 5 rows"
    page.fill("#search", "")
    page.select_option("#filter", label="All answers")
    page.select_option("select[name=lang]", label="Any lang")
    page.fill("#search", "  GING ")  # in the teacher's answer
    assert list_texts(page) == ["Ich gehst."]
    page.fill("#search", "id-4")
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
    assert page.locator(".example").count() == 20
    page.click("#more")
    assert page.locator(".example").count() == 40
    page.fill("#search", "text 1999")
    assert list_texts(page) == ["text 1999"]
    assert not page.is_visible("#more")


@pytest.mark.parametrize("place", range(6))
def test_no_output_of_a_model_runs(open_page, place):
    rows = [tuple(ATTACK if i == place else part for i, part in enumerate(row)) for row in ROWS[:2]]
    page = open_page(make_html([*rows, *ROWS], task=ATTACK))
    page.select_option("#filter", label="Student wrong where the teacher was right")
    page.select_option("#filter", label="All answers")
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_screen_and_scheme(open_page, tmp_path, scheme, viewport):
    long = ("Donaudampfschifffahrt" * 20, "x", "en", "y" * 300, "x", "x")
    page = open_page(make_html([long, *ROWS]), viewport=viewport, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    background, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    dark, bright = sorted((background, ink), key=lambda c: int(c.split("(")[1].split(",")[0]))
    assert background == (dark if scheme == "dark" else bright)
    shot = tmp_path / "report.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 20_000
