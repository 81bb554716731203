"""The report: complete, self-contained, and a pure function of the raw records."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_records import DEVICE, make_config, provenance, reported_profile, write_run

from sdpo_bench import report
from sdpo_bench.records import RecordError
from sdpo_bench.report import answers, write_report
from sdpo_bench.tables import load_groups

GENERATED = ("tables", "figures", "README.md", "report.html")


@pytest.fixture(scope="module")
def profile():
    return reported_profile()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_regenerating_elsewhere_gives_the_same_bytes(profile, tmp_path):
    copy = tmp_path / profile.name
    shutil.copytree(profile / "raw", copy / "raw")
    code = ("import sys; from sdpo_bench import figures, report, tables\n"
            "for module in (tables.write_tables, figures.write_figures, report.write_report): module(sys.argv[1])")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "0",
                   "PYTHONPATH": str(Path(report.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, str(copy)], check=True, env=environment, cwd=tmp_path)
    assert contents(copy) == contents(profile)


def test_readme_answers_first_and_leads_everywhere(profile):
    text = (profile / "README.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert headings == ["Answers", "What was run", "Tables", "Figures", "Where the numbers come from"]
    assert "**DDPO** is highest, ahead of the next, SDPO" in text
    for needed in (DEVICE, provenance()["commit"], "2.13.0", "sdpo-bench reproduce", make_config("PRDP")["run_id"],
                   "nox -s reproduce -- --profile quick --resume"):
        assert needed in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20
    assert all((profile / link).exists() for link in links)


def test_answers_do_not_claim_what_two_runs_show(profile):
    group = next(group for group in load_groups(profile) if group.steps == 20)
    assert all("not established" in sentence for sentence in answers(group))


@pytest.mark.parametrize("finished", [False, True])
def test_a_profile_that_has_only_begun_has_a_report(tmp_path, finished):
    from sdpo_bench.figures import write_figures
    from sdpo_bench.tables import render_terminal, write_tables

    write_run(tmp_path, make_config("start"), finished=finished)
    write_run(tmp_path, make_config("SDPO"), finished=False)
    write_tables(tmp_path)
    write_figures(tmp_path)
    write_report(tmp_path)
    assert ("nothing to compare yet" in (tmp_path / "README.md").read_text()) == finished
    assert make_config("SDPO")["run_id"] in (tmp_path / "report.html").read_text()
    assert make_config("SDPO")["run_id"] in render_terminal(tmp_path)
    assert not any("None" in path.read_text() for path in (tmp_path / "tables").iterdir())


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed in order."""

    VOID = ("meta", "img", "link", "br")

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
    assert len(page.sources) == 8
    assert all(source.startswith("data:image/") for source in page.sources)
    assert page.tags.count("table") == 2 * 5 + 1 + 1
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_labels_are_escaped(tmp_path):
    from sdpo_bench.figures import write_figures
    from sdpo_bench.tables import write_tables

    write_run(tmp_path, make_config("<b>R&D</b> | _x_"), pictures=False)
    write_tables(tmp_path)
    with pytest.raises(RecordError, match=r"missing; write the figures before the report"):
        write_report(tmp_path)
    write_figures(tmp_path)
    write_report(tmp_path)
    assert "&lt;b&gt;R&amp;D" in (tmp_path / "report.html").read_text()
    assert "<b>" not in (tmp_path / "report.html").read_text()
    assert r"\| _x_" in (tmp_path / "README.md").read_text()
