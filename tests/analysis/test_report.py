"""The report: complete, self-contained, and a pure function of the raw records."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from markupsafe import escape
from support.synthetic_records import DEVICE, make_config, provenance, reported_profile, write_run
from support.table_files import markdown_tables

from sdpo_bench.analysis import report
from sdpo_bench.analysis.comparisons import load_groups, load_results
from sdpo_bench.analysis.figures.build import drawings
from sdpo_bench.analysis.outputs import write_all
from sdpo_bench.analysis.questions import QUESTIONS, UNANSWERED, UNMEASURED, sections
from sdpo_bench.analysis.report import marked
from sdpo_bench.analysis.tables.base import Subject, Table
from sdpo_bench.analysis.tables.build import build_tables, render_terminal

GENERATED = ("tables", "figures", "README.md", "report.html")


@pytest.fixture(scope="module")
def profile():
    return reported_profile()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_regenerating_elsewhere_gives_the_same_bytes(profile, tmp_path):
    copy = tmp_path / profile.name
    shutil.copytree(profile / "raw", copy / "raw")
    code = (
        "import sys, pathlib; from sdpo_bench.analysis.outputs import write_all; write_all(pathlib.Path(sys.argv[1]))"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Tokyo",
        "SOURCE_DATE_EPOCH": "0",
        "PYTHONPATH": str(Path(report.__file__).parents[2]),
    }
    subprocess.run([sys.executable, "-c", code, str(copy)], check=True, env=environment, cwd=tmp_path)
    assert contents(copy) == contents(profile)


def test_readme_answers_first_and_leads_everywhere(profile):
    text = (profile / "README.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert headings == [
        *("In brief", "Main figure", "Main table", "Answers"),
        *("All tables and figures", "Where the numbers come from"),
    ]
    for needed in (
        DEVICE,
        provenance()["commit"],
        "2.13.0",
        "sdpo-bench reproduce",
        "not made yet: 1 of alignment at K = 4.",
        "nox -s reproduce -- --profile quick --results RESULTS --resume",
        "16 trained runs (5 seeds)",
    ):
        assert needed in text
    main = markdown_tables(profile)["main_alignment_k4"].partition("CSV:")[0]
    assert main.strip() in text
    assert "(figures/curves_samples_alignment_k4.svg)" in text
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert all((profile / path).exists() for path, _, _ in links)
    assert {anchor for _, _, anchor in links if anchor} == markdown_tables(profile).keys()
    made = {
        path.relative_to(profile).as_posix()
        for folder in ("tables", "figures")
        for path in (profile / folder).iterdir()
    }
    assert made <= {path for path, _, _ in links}


def table(name: str, subject: Subject | None, answer: str = "") -> Table:
    return Table(name, name, "", ("method",), (("", (("SDPO",),)),), pd.DataFrame(), answer, subject)


def test_every_subject_is_under_one_question():
    assert sorted(subject.name for question in QUESTIONS for subject in question.subjects) == sorted(
        Subject.__members__
    )


def test_every_table_stands_under_its_question_once():
    tables = [
        table("a", Subject.MAIN),
        table("b", Subject.PAPER),
        table("c", Subject.ABLATIONS),
        table("d", Subject.DENSE_BUDGETS),
        table("e", Subject.REACH),
        table("f", Subject.COST),
        table("g", Subject.HACKING),
        table("h", Subject.OTHER_REWARDS),
        table("i", Subject.ORDER, "So it is."),
        table("j", Subject.ORDER),
        table("main_of_no_subject", None),
    ]
    found = sections(tables)
    assert [[t.name for t in section.tables] for section in found] == [
        ["i", "j", "a", "b"],
        ["c"],
        ["d"],
        ["e", "f"],
        ["g", "h"],
        ["main_of_no_subject"],
    ]
    assert [section.answers for section in found[:2]] == [["So it is."], [UNANSWERED]]
    assert [(t.name, stands_open) for t, stands_open in found[0].ordered] == [
        ("a", True),
        *(("i", False), ("j", False), ("b", False)),
    ]
    assert found[-1].question.text == "Further tables"
    assert found[-1].answers == []
    assert [section.answers for section in sections([])] == [[UNMEASURED]] * len(QUESTIONS)


def test_every_table_and_figure_is_on_the_page(profile):
    text = (profile / "report.html").read_text()
    groups = load_groups(profile)
    for built in build_tables(groups):
        assert text.count(f'<h4 id="{built.name}">') == 1
        if built.answer:
            assert str(marked(built.answer)) in text.partition('<section id="tables">')[0]
    for drawing in drawings(groups):
        assert text.count(f'aria-label="{escape(drawing.alt)}"') == 1
    order = ['id="brief"', 'id="winners"', 'id="figures"', "<h2>Answers", "<h2>Tables", "<h2>Pictures"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


def test_texts_are_marked_and_escaped():
    assert marked("**SDPO** < `a --b` & c") == "<strong>SDPO</strong> &lt; <code>a --b</code> &amp; c"


@pytest.mark.parametrize("finished", [False, True])
def test_a_profile_that_has_only_begun_has_a_report(tmp_path, finished):
    write_run(tmp_path, make_config("start"), finished=finished)
    write_run(tmp_path, make_config("SDPO"), finished=False)
    write_all(tmp_path)
    assert "nothing to compare yet" in (tmp_path / "README.md").read_text()
    lacking = f"{1 + (not finished)} of alignment at K = 4"
    assert f"not made yet: {lacking}." in (tmp_path / "report.html").read_text()
    assert lacking in render_terminal(load_results(tmp_path))
    assert not any("None" in path.read_text() for path in tmp_path.glob("tables/*"))


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed in order."""

    VOID = ("meta", "img", "link", "br", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "img":
            assert dict(attributes)["alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_self_contained(profile):
    text = (profile / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    pictured = [source for source in page.sources if source.startswith("data:image/webp")]
    assert len(pictured) == 4 + 3  # at each K before training, and each method's
    linked = [source for source in page.sources if source not in pictured]
    assert all(source.startswith("#") and f'id="{source[1:]}"' in text for source in linked)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    assert "http" not in re.sub(r">[^<]*<", "><", text), "nothing but texts names an address"
    assert text.count('<div class="parts" role="img"') == len(drawings(load_groups(profile)))
    assert (
        page.tags.count("table") == len(build_tables(load_groups(profile))) + 2
    )  # and those of who leads, and of versions
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_labels_are_escaped(tmp_path):
    write_run(tmp_path, make_config("<b>R&D</b> | _x_"), pictures=False)
    write_all(tmp_path)
    assert "&lt;b&gt;R&amp;D" in (tmp_path / "report.html").read_text()
    assert "<b>" not in (tmp_path / "report.html").read_text()
    assert r"\| _x_" in (tmp_path / "README.md").read_text()
