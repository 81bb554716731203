"""Texts of records that would act on who reads the tables: markup, formulas, links, terminal control."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from support.synthetic_records import make_config, write_run
from support.table_files import markdown_tables

from sdpo_bench.analysis import render
from sdpo_bench.analysis.comparisons import load_groups
from sdpo_bench.analysis.figures.build import drawings, figure_files
from sdpo_bench.analysis.markup import escaped
from sdpo_bench.analysis.render import latex, markdown
from sdpo_bench.analysis.tables.base import Table
from sdpo_bench.cli import main
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import load_run
from sdpo_bench.terminal import printable

LABELS = [
    "SDPO \\1 \\g<x> \\",
    "{braces} %s {0} }",
    "a \"quoted\" 'label'",
    "$x_{ and $",
    "50 % & #1_a^2~b",
    "[b] *c* _d_",
    "<script>alert(1)</script>",
    "<img src=http://evil/x.png onerror=alert(1)>",
    "![x](http://evil/x.png)",
    "[x](javascript:alert)",
    "a|b",
    "`code` ``",
    '=HYPERLINK("http://evil")',
    "+1+1",
    "-1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "_hidden",
    "日本 🐈",
    "&lt;b&gt;",
    "</svg></text>",
    ' id="x" style="y" #000000',
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A profile of all LABELS, a run each, one of them of a hostile reward and device."""
    folder = tmp_path_factory.mktemp("hostile") / "full"
    for label in LABELS:
        write_run(folder, make_config(label, epochs=10), pictures=False)
    write_run(
        folder,
        make_config("SDPO", epochs=10, reward="<b>`r`</b> | \\"),
        pictures=False,
        rewards=("<b>`r`</b> | \\", "=1+1"),
    )
    assert main.main(["tables", str(folder), "--latex"]) == 0
    return folder


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_markdown_holds_no_tag_picture_or_link_of_a_label(hostile):
    pages = [hostile / "README.md", *hostile.glob("tables/*.md")]
    for path in pages:
        text = re.sub(r"\\.", "", path.read_text())  # what is escaped
        text = re.sub(r"</?details>|</?summary>|raw/<run id>/", "", text)  # ours
        assert not re.search(r"<[A-Za-z/!?]", text), path
        links = re.findall(r"\]\(([^)]*)\)", text)
        ours = r"(tables/|figures/|report\.html|\.\./README\.md$|[\w-]+\.csv$)"
        assert all(re.match(ours, link) for link in links), path
        for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_the_report_runs_and_loads_nothing(hostile):
    page = Tags()
    page.feed((hostile / "report.html").read_text())
    assert sum(tag == "script" for tag, _ in page.found) == 1
    assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
    sources = [value for _, attributes in page.found for name, value in attributes.items() if name in ("src", "href")]
    assert all(source.startswith(("#", "data:")) for source in sources)
    text = (hostile / "report.html").read_text()
    for label in ("SDPO \\1 \\g&lt;x&gt; \\", "{braces} %s {0} }", "$x_{ and $"):
        assert label in text


def test_figures_are_sound_and_show_labels_as_they_are(hostile):
    from xml.etree import ElementTree

    for svg in figure_files(drawings(load_groups(hostile))).values():
        root = ElementTree.fromstring(svg)
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    text = "".join(ElementTree.parse(hostile / "figures" / "curves_samples_alignment_k4.svg").getroot().itertext())
    for label in LABELS:
        if not label.startswith("_"):
            assert " ".join(label.split()) in text, label


def test_no_text_of_a_csv_is_a_formula(hostile):
    for path in hostile.glob("tables/*.csv"):
        with open(path, newline="") as file:
            for row in csv.reader(file):
                for cell in row:
                    numbers = re.fullmatch(r"-?[\d.e+-]+( -?[\d.e+-]+)*", cell)
                    assert numbers or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), (path, cell)
    frame = pd.read_csv(hostile / "tables" / "main_alignment.csv")
    assert {'\'=HYPERLINK("http://evil")', "'+1+1", "'@SUM(1)", "a|b"} <= set(frame["label"])
    assert frame["value"].dtype == float


def test_numbers_of_a_csv_stay_numbers():
    frame = pd.DataFrame({"runs": ["-0.01 0.02", "-1e-05", "-1+1", "\tx", "+"], "value": [-1.0, 2, 3, 4, 5]})
    assert render.csv(frame).splitlines()[1:] == ["-0.01 0.02,-1", "-1e-05,2", "'-1+1,3", "'\tx,4", "'+,5"]


def test_latex_of_any_label_is_balanced(hostile):
    paths = [*hostile.glob("tables/*.tex")]
    assert len(paths) == len(markdown_tables(hostile))
    for path in paths:
        text = path.read_text()
        plain = re.sub(r"\\[{}\\]", "", text)
        assert plain.count("{") == plain.count("}"), path
        assert not re.search(r"^\s*[\[*]", text, re.M), "an option of the row before"


def test_what_is_said_is_kept():
    assert escaped("a > b, a ~ b, 1 < 2, `code --x`, **bold**, [0.1, 0.2] (n=5)") == (
        "a > b, a ~ b, 1 < 2, `code --x`, **bold**, [0.1, 0.2] (n=5)"
    )
    assert escaped("<b> | `<i>` \\ [x](y) ![z] &amp; &") == ("&lt;b> \\| \\`&lt;i>\\` \\\\ [x\\](y) \\![z] &amp;amp; &")
    shown = markdown(Table("x", "`a", "n", ("h|",), (("", (("x|",),)),), pd.DataFrame()))
    assert shown == "**\\`a**\n\n| h\\| |\n|---|\n| x\\| |\n\nn"
    assert r"{}[a] & b \\" in latex(Table("x", "t", "n", ("h", "i"), (("", (("[a]", "b"),)),), pd.DataFrame()))


def test_no_control_character_reaches_the_terminal(hostile, tmp_path, capsys):
    assert printable("a\x1b[31mb\r\x07\x9b\u202e\ud800\n\tc") == "a\\x1b[31mb\\r\\x07\\x9b\\u202e\\ud800\n\tc"
    assert main.main(["compare", "\x1b[2Jx", "y", "--results", str(hostile.parent)]) == 2
    assert main.main(["tables", str(tmp_path / "\x1b]0;x\x07")]) == 2
    assert main.main(["x\x1b[2J"]) == 2
    folder = tmp_path / "full"
    shutil.copytree(hostile, folder)
    record = next(folder.glob("raw/sdpo-*/provenance.json"))
    record.write_text(
        json.dumps(json.loads(record.read_text()) | {"command": "x\x1b[2J\n```\n<script>", "commit": "abc"})
    )
    assert main.main(["tables", str(folder)]) == 0
    text = (folder / "README.md").read_text()
    assert "x\\x1b[2J ``` <script>" in text.partition("\n````\n")[2], "in a fence that it cannot end"
    said = "".join(capsys.readouterr())
    assert said
    assert not set(said) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}


@pytest.mark.parametrize("label", ["a\x1b[31m", "a\nb", "a\tb", "a\u202eb", "a\ud800"])
def test_labels_with_control_characters_are_refused(tmp_path, label):
    with pytest.raises(UserError, match=r"--label is .*; expected a line of text"):
        RunConfig(label=label)
    folder = write_run(tmp_path, make_config("SDPO", epochs=1), pictures=False)
    config = json.loads((folder / "config.json").read_text()) | {"label": label}
    name = run_id(config)
    (folder / "config.json").write_text(json.dumps(config | {"run_id": name}))
    with pytest.raises(RecordError) as caught:
        load_run(folder.rename(folder.with_name(name)))
    assert printable(str(caught.value)) == str(caught.value)


def test_names_of_any_length_fit_into_a_files_name(tmp_path):
    """A table's name is made of a reward, a model, a device and another reward."""
    long = "reward" * 15
    write_run(
        tmp_path,
        make_config("SDPO", epochs=1, reward=long, model="m" * 300),
        pictures=False,
        rewards=(long, "o" * 300),
        device="d" * 300,
    )
    write_run(tmp_path, make_config("SDPO", epochs=1), pictures=False)
    write_run(tmp_path, make_config("DDPO", epochs=1), pictures=False)
    assert main.main(["tables", str(tmp_path)]) == 0
    assert max(len(path.name) for path in tmp_path.glob("tables/*")) < 200


def test_two_rewards_of_one_name_are_refused(tmp_path, capsys):
    write_run(tmp_path, make_config("SDPO", epochs=1), pictures=False, rewards=("alignment", "a b", "a-b"))
    assert main.main(["tables", str(tmp_path)]) == 2
    assert "two tables would be named other_alignment_k4_a-b" in capsys.readouterr().err
