"""The report in a headless Chromium: what people see, and that it works."""

from __future__ import annotations

import base64
import io
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import chromium
from support.study_records import write_study
from support.synthetic_records import reported_profile

from sdpo_bench.analysis.outputs import write_all

pytestmark = pytest.mark.skipif(chromium.PATH is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[chromium.Chromium]:
    with chromium.Chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module", params=["quick", "study"])
def page(request, tmp_path_factory) -> Path:
    """A tiny profile's report, and one with all that the study measures."""
    if request.param == "quick":
        return reported_profile() / "report.html"
    profile = write_study(tmp_path_factory.mktemp("results") / "full")
    write_all(profile)
    return profile / "report.html"


SCREEN = 900  # pixels, of a window 1280 wide


def test_the_first_screen_answers(browser, page):
    browser.size(1280, SCREEN)
    browser.open(page)
    ends = browser.run(
        "['.brief li:last-child', '.winners'].map(part => document.querySelector(part).getBoundingClientRect().bottom)"
    )
    assert max(ends) < SCREEN
    assert browser.run("document.querySelectorAll('.winners tbody').length") >= 1
    [first, second] = browser.run(
        "[...document.querySelectorAll('figure')].slice(0, 2).map(figure => figure.getBoundingClientRect().y)"
    )
    assert first == second < SCREEN, "ours beside the paper's"
    assert browser.run("document.querySelectorAll('.brief > ul > li').length") <= 4
    assert browser.run("document.documentElement.scrollHeight") < 12 * SCREEN


def test_of_the_tables_the_main_one_is_open(browser, page):
    browser.open(page)
    shown = browser.run(
        "[...document.querySelectorAll('#tables table')].filter(table => table.checkVisibility()).map("
        "table => table.closest('[data-k]').querySelector('h4').id)"
    )
    assert shown == ["main_alignment_k4"]
    closed = browser.run("[...document.querySelectorAll('#tables details')].map(details => details.open)")
    assert len(closed) > 10
    assert not any(closed)


def complaints(browser: chromium.Chromium) -> list[str]:
    """What the page wrote to the console, threw, or asked of the network; in it are no files but the page itself."""
    found = [
        str(event["params"])
        for event in browser.events
        if event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    ]
    requests = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    return found + [url for url in requests if not url.startswith("data:")][1:]


def test_the_page_loads_wholly_and_asks_for_nothing(browser, page):
    browser.size(1280)
    browser.open(page)
    assert complaints(browser) == []
    widths = browser.run("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 4
    assert min(widths) > 0
    assert browser.run("[...document.images].every(image => image.alt)")
    boxes = browser.run(
        "[...document.querySelectorAll('.parts')].filter(parts => parts.checkVisibility()).map(parts => ["
        "parts.querySelectorAll('.panel').length, parts.ariaLabel.length])"
    )
    assert len(boxes) >= 6
    assert all(panels >= 1 and alt > 40 for panels, alt in boxes)
    heights = browser.run(
        "[...document.querySelectorAll('.panel')].filter(svg => svg.checkVisibility()).map(svg => svg.clientHeight)"
    )
    assert min(heights) > 60
    # Every symbol that a figure refers to is in that figure.
    assert (
        browser.run(
            "[...document.querySelectorAll('svg use')].filter(use => !use.closest('.parts').querySelector("
            "use.getAttribute('xlink:href'))).length"
        )
        == 0
    )


def test_complaints_are_heard(browser, tmp_path):
    """What the test above finds none of."""
    (tmp_path / "bad.html").write_text("<img src='missing.png'><script>console.error('no'); nothing()</script>")
    browser.open(tmp_path / "bad.html")
    found = " ".join(complaints(browser))
    for word in ("missing.png", "'no'", "nothing is not defined"):
        assert word in found


ROWS = """[...document.querySelector('h4[id^=main] + div table').tBodies].map(body =>
    [...body.rows].map(row => [...row.cells].map(cell => cell.textContent)))"""
HEADS = "document.querySelectorAll('h4[id^=main] + div thead th')"


@pytest.mark.parametrize("how", ["click", "Enter", " "])
def test_tables_sort(browser, page, how):
    browser.open(page)
    browser.run("document.querySelectorAll('#tables details').forEach(details => details.open = true)")
    before = browser.run(ROWS)
    assert len(before) == 2  # seen and unseen prompts

    def press() -> str | None:
        if how == "click":
            box = browser.run(
                f"(() => {{ const b = {HEADS}[1].querySelector('[role=button]'); b.scrollIntoView(); const r = "
                "b.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
            )
            for kind in ("mousePressed", "mouseReleased"):
                browser.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
        else:
            browser.run(f"{HEADS}[1].querySelector('[role=button]').focus()")
            for kind in ("keyDown", "keyUp"):
                browser.call(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=how,
                    text="\r" if how == "Enter" else how,
                    code="Enter" if how == "Enter" else "Space",
                    windowsVirtualKeyCode=13 if how == "Enter" else 32,
                )
        return browser.run(f"{HEADS}[1].ariaSort")

    def estimates() -> list[list[float]]:
        """Of column 1: the estimate, or of two runs their mean."""
        texts = [[row[1] for row in block if len(row) > 1] for block in browser.run(ROWS)]
        numbers = [[text.split(" [")[0].split(" (")[0].split(", ") for text in block if text != "–"] for block in texts]
        return [[sum(map(float, cell)) / len(cell) for cell in block] for block in numbers]

    assert browser.run(f"{HEADS}[1].ariaSort") is None
    assert press() == "ascending"
    found = estimates()
    assert found == [sorted(block) for block in found]
    rows = browser.run(ROWS)
    assert rows != before
    assert [sorted(block) for block in rows] == [sorted(block) for block in before], "each row in its block"
    assert [block[0] for block in rows] == [block[0] for block in before], "below the block's title"
    columns = [[row[1] for row in block if len(row) > 1] for block in rows]
    assert all("–" not in column[: len(column) - column.count("–")] for column in columns), "what is missing is last"
    assert press() == "descending"
    assert estimates() == [block[::-1] for block in found]
    assert press() is None
    assert browser.run(ROWS) == before


def test_nothing_runs_over_on_a_phone(browser, page):
    browser.size(360, 740, phone=True)
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert browser.run("document.documentElement.scrollWidth") == 360
    assert browser.run("innerWidth") == 360  # else the page was zoomed out to fit
    assert browser.run("[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)")
    # Figures are whole, their texts of 10 units are read.
    drawn = browser.run(
        "[...document.querySelectorAll('.parts svg')].filter(svg => svg.checkVisibility()).map(svg => { const box = "
        "svg.getBoundingClientRect(); return [svg.closest('.scroll') !== null, box.right, box.width / "
        "svg.viewBox.baseVal.width * 10] })"
    )
    assert len(drawn) > 20
    assert not any(scrolls for scrolls, *_ in drawn)
    assert max(right for _, right, _ in drawn) <= 360
    assert min(size for *_, size in drawn) >= 8
    sizes = browser.run(
        "[...document.querySelectorAll('.parts svg text')].map(text => parseFloat(getComputedStyle(text).fontSize))"
    )
    assert min(sizes) >= 10
    browser.size(1280)


def test_it_turns_dark(browser, page):
    colours = (
        "[['body', 'backgroundColor'], ['body', 'color'], ['svg text', 'fill'], ['.panel path', 'fill']].map("
        "([element, property]) => getComputedStyle(document.querySelector(element))[property])"
    )
    found = {}
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        browser.open(page)
        found[scheme] = browser.run(colours)
    browser.scheme("light")
    page_colour, ink, text, paper = zip(*found.values(), strict=True)
    assert page_colour == paper == ("rgb(255, 255, 255)", "rgb(22, 24, 27)")
    assert ink == text
    assert len(set(ink)) == 2


BROKEN = """[...document.querySelectorAll('thead th')].filter(head => head.checkVisibility()).flatMap(head => {
    const texts = document.createTreeWalker(head, NodeFilter.SHOW_TEXT), broken = [];
    for (let text = texts.nextNode(); text; text = texts.nextNode())
        for (const word of text.data.matchAll(/[^\\s-]+/g)) {
            const range = document.createRange();
            range.setStart(text, word.index);
            range.setEnd(text, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map(box => box.top)).size > 1) broken.push(word[0]);
        }
    return broken;
})"""


def test_print_is_light_and_complete(browser, page):
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    browser.size(700)
    browser.open(page)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("document.documentElement.scrollWidth") <= 700
    # Of a closed table print says where it is.
    assert browser.run(
        "[...document.querySelectorAll('#tables details')].filter(table => table.checkVisibility()).every(table =>"
        "table.querySelector('summary').innerText.match(/\\(tables\\/[a-z_]+\\.md\\)$/))"
    )
    # On paper nothing scrolls: what does not fit is lost. And heads keep their words.
    browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert browser.run(BROKEN) == []
    over = browser.run(
        "[...document.querySelectorAll('.scroll')].filter(box => box.offsetParent && box.scrollWidth > "
        "box.clientWidth + 1).map(box => box.ariaLabel || box.innerText.slice(0, 80))"
    )
    assert over == []
    browser.call("Emulation.setEmulatedMedia", media="", features=[])


def test_a_pdf_has_the_words(browser, page):
    """Those of the verdicts, folded ones too, and of each head and caption that is shown; tables open."""
    pypdf = pytest.importorskip("pypdf")
    browser.size(1280)
    browser.open(page)
    browser.run("document.querySelectorAll('#tables details').forEach(details => details.open = true)")
    shown = browser.run(
        "[...document.querySelectorAll('.brief li, thead th, figcaption')].filter(part => part.checkVisibility() || "
        "part.closest('.printed')).map(part => part.innerText)"
    )
    data = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    found = " ".join(sheet.extract_text() for sheet in pypdf.PdfReader(io.BytesIO(data)).pages)
    # A font may draw ff as one sign, and a line may end after "_" or "-".
    found = re.sub(r"([_-])\n", r"\1", unicodedata.normalize("NFKC", found))
    words = {re.sub(r"\W", "", word) for word in found.split()}
    wanted = {re.sub(r"\W", "", word) for text in shown for word in text.split()}
    assert len(wanted) > 100
    assert wanted - words == set()


@pytest.fixture(scope="module")
def two_rewards(tmp_path_factory) -> Path:
    """The report of runs of alignment at K = 4 and 20, and of colourfulness at K = 4."""
    folder = tmp_path_factory.mktemp("results") / "full"
    rewards = ("alignment", "colourfulness")
    profile = write_study(folder, ("SDPO", "DDPO"), seeds=1, training_steps=(4, 20), rewards=rewards)
    for run in (profile / "raw").glob("*-colourfulness-k20-*"):
        shutil.rmtree(run)
    write_all(profile)
    return profile / "report.html"


def test_selectors_hide_what_is_of_another_reward_or_k(browser, two_rewards):
    browser.open(two_rewards)

    def shown() -> set[str]:
        return set(
            browser.run(
                "[...document.querySelectorAll('main [data-k]')].filter(part => part.checkVisibility()).map("
                "part => part.dataset.reward + ' ' + part.dataset.k)"
            )
        )

    def choose(key: str, value: str) -> None:
        browser.run(
            f"(() => {{ const select = document.querySelector('.choose select[data-key={key}]'); "
            f"select.value = '{value}'; select.dispatchEvent(new Event('change', {{bubbles: true}})) }})()"
        )

    assert shown() == {"alignment 4"}
    choose("k", "20")
    assert shown() == {"alignment 20"}
    choose("reward", "colourfulness")
    assert shown() == {"colourfulness 4"}, "not K = 20, of which there is none"
    assert browser.run(
        "[...document.querySelector('.choose select[data-key=k]').options].map(option => option.disabled)"
    ) == [False, True, False]
    choose("reward", "")
    assert shown() == {"alignment 4", "colourfulness 4"}
    choose("k", "")
    assert shown() == {"alignment 4", "alignment 20", "colourfulness 4"}
