"""Figures: colours, what is drawn, what their texts say, and that they are files of the right kind."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from support import study_records, synthetic_records
from support.study_records import BUDGETS, EPOCHS, EVAL_STEPS, LAST_STEPS, QUANTITIES, write_study
from support.synthetic_records import STEPS, reported_profile

from sdpo_bench.analysis.comparisons import load_groups
from sdpo_bench.analysis.figures import curves, dense, style
from sdpo_bench.analysis.figures.build import drawings, figure_files, grid_prompts, pictures
from sdpo_bench.analysis.figures.curves import paper_curves, reward_by_steps, reward_curves
from sdpo_bench.analysis.figures.dense import dense_errors
from sdpo_bench.analysis.figures.forest import forest
from sdpo_bench.analysis.figures.hacking import changes, hacking
from sdpo_bench.analysis.figures.inline import inline
from sdpo_bench.analysis.figures.measures import measure_curves, measured, measures_alt
from sdpo_bench.analysis.figures.style import KNOWN, SPARE, TEXT, styles, svg
from sdpo_bench.analysis.paper import METHODS, load_curves
from sdpo_bench.analysis.statistics import mean_interval, paired_difference
from sdpo_bench.records.files import RecordError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def group():
    return next(group for group in load_groups(reported_profile()) if group.steps == 4)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return load_groups(write_study(tmp_path_factory.mktemp("results") / "full"))[0]


def titles(figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]


def legend(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_colours_are_fixed_and_distinct():
    colours = [colour for colour, _ in KNOWN.values()] + list(SPARE)
    assert len(set(colours)) == len(colours)
    # No two methods' own lines come close, whatever palette follows.
    own = np.array([to_rgb(KNOWN[label][0]) for label in ("SDPO", "DDPO", "REBEL", "PRDP", "D3PO")])
    assert min(np.abs(a - b).sum() for i, a in enumerate(own) for b in own[:i]) > 0.4
    few, many = styles(["SDPO", "Mine"]), styles(["Yours", "SDPO", "Mine", "DDPO", "pretrained"])
    assert few["SDPO"] == many["SDPO"]
    assert list(many) == ["pretrained", "SDPO", "DDPO", "Mine", "Yours"]
    looks = [(style["color"], style["marker"]) for style in many.values()]
    assert len(set(looks)) == len(looks)


def test_a_variant_has_its_methods_colour_and_a_marker_of_its_own():
    found = styles(["SDPO", "SDPO (exact)", "SDPO 0.0001", "SDPO 0.0003", "SDPO-causal", "SDPO-new"])
    assert {found[label]["color"] for label in ("SDPO", "SDPO (exact)", "SDPO 0.0001")} == {KNOWN["SDPO"][0]}
    assert found["SDPO-causal"]["color"] == KNOWN["SDPO-causal"][0]
    assert found["SDPO-new"]["color"] == SPARE[0]
    assert len({style["marker"] for style in found.values()}) == len(found)
    dotted = {label for label, style in found.items() if style["linestyle"] == ":"}
    assert dotted == {"SDPO (exact)", "SDPO 0.0001", "SDPO 0.0003"}


@pytest.mark.parametrize("counter", ["samples", "reward_queries", "optimiser_steps"])
def test_curves_show_the_records(group, counter):
    figure = reward_curves(group, counter, styles(group.labels))
    assert titles(figure) == [f"{k} sampling step{'s' * (k > 1)}" for k in STEPS]
    last = figure.axes[1]
    lines = {line.get_color(): line for line in last.get_lines()}
    sdpo = lines[KNOWN["SDPO"][0]]
    assert sdpo.get_xdata()[-1] == {"samples": 3840, "reward_queries": 11520, "optimiser_steps": 240}[counter]
    final = np.mean(sorted(group.cell("SDPO", "alignment", "seen", 2).values())[1:-1])
    assert sdpo.get_ydata()[-1] == pytest.approx(final)
    assert len(last.collections) == 3  # a band a method
    assert legend(figure) == ["pretrained", "SDPO", "DDPO", "REBEL"]
    assert figure.axes[0].get_ylabel() == "alignment"
    assert all(axis.get_xlabel() for axis in figure.axes[-2:])


def test_real_pictures_are_a_line_where_the_axis_comes_near(group, monkeypatch):
    committed = json.loads((ROOT / "results" / "testbed" / "quality.json").read_text())["pictures"]
    real = committed["real, mild augmentation"]["alignment"]
    assert {("embedded", "alignment"): real} == curves.REAL_PICTURES

    def heights(value: float) -> list[bool]:
        monkeypatch.setattr(curves, "REAL_PICTURES", {(group.model, "alignment"): value})
        drawn = [reward_curves(group, "samples", styles(group.labels)), reward_by_steps(group, styles(group.labels))]
        lines = [[*line.get_ydata()] for figure in drawn for axis in figure.axes for line in axis.get_lines()]
        texts = [text.get_text() for figure in drawn for axis in figure.axes for text in axis.texts]
        assert lines.count([value, value]) == texts.count("real pictures")
        return ["real pictures" in [text.get_text() for text in axis.texts] for axis in drawn[0].axes]

    top = group.cell("SDPO", "alignment", "seen", 2)[0]
    assert heights(top)[1]
    assert not any(heights(top + 10))


def test_steps_evaluated_at_the_end_have_two_points_and_say_so(study):
    figure = reward_curves(study, "samples", styles(study.labels))
    layouts = [drawn.axes[0].get_gridspec().get_geometry() for drawn in (figure, paper_curves())]
    assert layouts == [(2, 3), (2, 3)]  # the paper's
    assert titles(figure)[3:] == ["8 sampling steps", "16 steps, start and end", "50 steps, start and end"]
    points = [{len(line.get_xdata()) for line in axis.get_lines()[1:]} for axis in figure.axes]
    assert points == [{3}] * len(EVAL_STEPS) + [{2}] * len(LAST_STEPS)
    sdpo = next(line for line in figure.axes[-1].get_lines() if line.get_color() == KNOWN["SDPO"][0])
    assert sdpo.get_ydata()[0] == study.cell("pretrained", "alignment", "seen", 50)[0]
    # Two points against queries would be a line of two methods' ends alone.
    assert len(titles(reward_curves(study, "reward_queries", styles(study.labels)))) == len(EVAL_STEPS)


def test_ablations_stand_in_no_figure_but_their_own(study):
    style = styles(study.labels)
    shown = ["pretrained", "SDPO", "DDPO", "SDPO-gain"]
    assert legend(reward_curves(study, "samples", style)) == legend(reward_by_steps(study, style)) == shown
    assert legend(hacking(study, style)) == shown[1:]
    assert {picture.title.split(",")[0] for picture in pictures(study)} == {"before training", *shown[1:]}
    figure = forest(study, style)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["SDPO (exact)", "DDPO (per step)"]


def test_the_forest_shows_paired_differences(study):
    figure = forest(study, styles(study.labels))
    assert titles(figure)[-1] == "50 sampling steps"
    for axis, k in zip(figure.axes, (*EVAL_STEPS, *LAST_STEPS), strict=True):
        for y, (label, method) in enumerate([("SDPO (exact)", "SDPO"), ("DDPO (per step)", "DDPO")]):
            expected = paired_difference(
                study.cell(label, "alignment", "seen", k), study.cell(method, "alignment", "seen", k)
            )
            assert axis.get_lines()[1 + y].get_xdata() == pytest.approx(expected.value)
            np.testing.assert_allclose(axis.collections[y].get_segments()[0][:, 0], expected[1:3])


def test_few_pairs_are_points_without_an_interval(tmp_path):
    (few,) = load_groups(write_study(tmp_path / "few", ("SDPO", "SDPO (exact)"), seeds=2))
    axis = forest(few, styles(few.labels)).axes[0]
    assert len(axis.collections) == 0
    assert len(axis.get_lines()[1].get_xdata()) == 2


def test_hacking_shows_a_point_a_run_and_the_means(study):
    figure = hacking(study, styles(study.labels))
    others = ["alignment_heldout", "diversity", "diversity_heldout", "colourfulness", "jpeg_compressibility"]
    assert titles(figure) == others
    axis = figure.axes[others.index("diversity")]
    runs, across, down, mean = (line for line in axis.get_lines() if line.get_color() == KNOWN["SDPO"][0])
    x, y = (changes(study, "SDPO", reward) for reward in ("alignment", "diversity"))
    assert sorted(runs.get_xdata()) == pytest.approx(sorted(x.values()))
    assert (mean.get_xdata()[0], mean.get_ydata()[0]) == pytest.approx(
        (np.mean(list(x.values())), np.mean(list(y.values())))
    )
    for line, values in ((across.get_xdata(), x), (down.get_ydata(), y)):
        assert list(line) == pytest.approx(mean_interval(list(values.values()))[1:3])
    assert max(y.values()) < 0 < min(x.values())
    start, after = (study.cell(label, "diversity", "seen", 4) for label in ("pretrained", "SDPO"))
    alone = {seed: value - start[0] for seed, value in after.items()}
    assert np.mean(list(alone.values())) == pytest.approx(np.mean(list(y.values())), abs=0.02)


def test_what_was_evaluated_on_the_way_has_curves(study):
    """All six quantities were, at four numbers of steps; 16 and 50 at the end alone."""
    figure = measure_curves(study, styles(study.labels))
    names = ["alignment", *sorted({*QUANTITIES} - {"alignment"})]
    assert figure.axes[0].get_gridspec().get_geometry() == (len(names), len(EVAL_STEPS))
    assert titles(figure) == len(names) * [f"{k} sampling step{'s' * (k > 1)}" for k in EVAL_STEPS]
    assert [axis.get_ylabel() for axis in figure.axes[:: len(EVAL_STEPS)]] == names
    axis = figure.axes[len(EVAL_STEPS) * names.index("diversity") + 1]
    (sdpo,) = (line for line in axis.get_lines() if line.get_color() == KNOWN["SDPO"][0])
    ends = study.cell("SDPO", "diversity", "seen", 2).values()
    assert sdpo.get_ydata()[[0, -1]] == pytest.approx(
        [study.cell("pretrained", "diversity", "seen", 2)[0], np.mean(sorted(ends)[1:-1])]
    )
    assert "diversity: SDPO, DDPO and SDPO-gain at 0 of 4." in measures_alt(study)


def test_what_was_evaluated_at_the_end_alone_has_none(group):
    ends = group.curves[
        (group.curves["reward"] == "alignment") | (group.curves["epoch"].isin((0, group.curves["epoch"].max())))
    ]
    assert set(ends["reward"]) == {"alignment", "alignment_heldout"}
    assert measured(dataclasses.replace(group, curves=ends)) == {}
    assert list(measured(group)) == ["alignment", "alignment_heldout"]


def test_dense_errors_by_step_budget_and_epoch(study):
    figure = dense_errors(study)
    assert titles(figure) == ["mean absolute error", "correlation of returns", "error during training"]
    assert len(legend(figure)) == len(BUDGETS) + 1
    error, correlation, epochs = figure.axes
    rows = [
        row
        for run in study.runs
        if run.label == "SDPO"
        for row in run.dense
        if row["epoch"] == EPOCHS and row["budget"] == "3"
    ]
    assert len(rows) == 5
    drawn = {line.get_color(): line for line in error.get_lines()}[dense.LOOKS["3"]["color"]]
    np.testing.assert_allclose(drawn.get_ydata(), np.mean([row["mae"] for row in rows], axis=0))
    assert list(drawn.get_xdata()) == [1, 2, 3, 4]
    assert all(len(line.get_xdata()) == 3 for line in epochs.get_lines())
    assert len(correlation.get_lines()) == len(BUDGETS)


def test_the_papers_curves_have_a_figure_of_their_own(group):
    curves, figure = load_curves(), paper_curves()
    assert legend(figure) == list(METHODS)
    assert titles(figure)[-1] == "50 sampling steps"
    for axis, steps in zip(figure.axes, (1, 2, 4, 8, 16, 50), strict=True):
        drawn = {to_hex(line.get_color()): line for line in axis.get_lines()}
        assert drawn.keys() == {KNOWN[method][0] for method in METHODS}
        sdpo = curves[(curves["steps"] == steps) & (curves["method"] == "SDPO")]
        points = dict(zip(sdpo["samples"], sdpo["mean"], strict=True))
        line = drawn[KNOWN["SDPO"][0]]
        assert [points[x] for x in line.get_xdata()] == list(line.get_ydata())
        assert line.get_xdata()[-1] == sdpo["samples"].max()
    caption = next(d.caption for d in drawings([group]) if d.name == "published")
    assert caption.startswith("Published, SD-Turbo, Aesthetic")
    ours = reward_curves(group, "samples", styles(group.labels))
    assert max(len(line.get_xdata()) for axis in ours.axes for line in axis.get_lines()) < 10


def test_without_the_papers_curves_there_is_no_such_figure(group, monkeypatch):
    def missing():
        raise RecordError("not there")

    assert "published" in [drawing.name for drawing in drawings([group])]
    monkeypatch.setattr(curves, "load_curves", missing)
    assert "published" not in [drawing.name for drawing in drawings([group])]


def test_reward_by_steps_has_a_panel_per_split(group):
    figure = reward_by_steps(group, styles(group.labels))
    assert titles(figure) == ["seen prompts", "unseen prompts"]
    start = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(start.get_ydata(), [group.cell("pretrained", "alignment", "seen", k)[0] for k in STEPS])


def test_pictures_show_the_shared_start_once(group):
    found = pictures(group)
    assert [picture.title for picture in found] == ["before training", "SDPO, seed 0", "DDPO, seed 0", "REBEL, seed 0"]
    assert grid_prompts(group).startswith("cat, dog, ")
    values = {
        (label, k): group.cell(label, "alignment", "seen", k)[0] for label in ("pretrained", "SDPO") for k in STEPS
    }
    for picture, label in zip(found, ("pretrained", "SDPO"), strict=False):
        means = ", ".join(f"{values[label, k]:.3f}" for k in STEPS)
        assert picture.scores.startswith(f"alignment at 1, 2, 4 and 8 sampling steps: {means}; alignment_heldout at ")
    with Image.open(io.BytesIO(found[1].data)) as image:
        assert (image.format, image.size) == ("WEBP", found[1].size)
        original = Image.open(next((reported_profile() / "raw").glob("sdpo-alignment-k4-s0-*/grid_after.png")))
        difference = np.abs(np.asarray(image, float) - np.asarray(original.convert("RGB"), float))
        assert difference.mean() < 5


def test_the_texts_say_what_the_records_show(study):
    found = {drawing.name.removesuffix(study.suffix): drawing for drawing in drawings([study])}
    assert {*found} == {
        "curves_samples",
        "published",
        "steps",
        "curves_reward_queries",
        "curves_optimiser_steps",
        "measures",
        "hacking",
        "dense",
        "ablations",
    }
    assert "DDPO at 1, 2, 4, 8, 16 and 50 sampling steps" in found["curves_samples"].alt
    assert "diversity in 15 of 15" in found["hacking"].alt
    assert "alignment_heldout in 0 of 15" in found["hacking"].alt
    assert "SDPO (exact) below at 1" in found["ablations"].alt
    assert f"at epoch {EPOCHS}, 5 runs" in found["dense"].alt
    assert "n = 5 a method; band: 95 % interval" in found["curves_samples"].caption
    assert all(drawing.alt.endswith(".") and drawing.caption.endswith(".") for drawing in found.values())


def test_files(group):
    """Of all figures, which the page has; README.md's lie beside it: against samples, and of the main one's runs what
    else there is."""
    found = figure_files(drawings(load_groups(reported_profile())))
    expected = {
        f"{stem}_alignment_k{k}.svg"
        for k in (4, 20)
        for stem in (
            "curves_samples",
            "curves_reward_queries",
            "curves_optimiser_steps",
            "steps",
            "measures",
            "hacking",
        )
    }
    assert {*found} == {f"figures/{name}" for name in expected | {"published.svg"}}
    for path in (reported_profile() / "figures").iterdir():
        assert path.read_bytes() == found[f"figures/{path.name}"]
    assert {path.name for path in (reported_profile() / "figures").iterdir()} == {
        "curves_samples_alignment_k4.svg",
        "curves_samples_alignment_k20.svg",
        *(f"{name}_alignment_k4.svg" for name in ("curves_optimiser_steps", "measures", "hacking")),
    }
    for data in found.values():
        assert not any(word in data for word in (b"Matplotlib v", b"dc:date", b"Software"))
        assert ElementTree.fromstring(data).tag.endswith("svg")
        assert len(data) < 110_000


def test_on_the_page_a_figure_is_in_parts(group):
    """Nothing of it is lost: title, legend and panels, in ids, classes and colours that are the page's."""
    with matplotlib.rc_context(TEXT):
        text = svg(reward_by_steps(group, styles(group.labels)))
    page = inline(text, 3, "Lines")
    assert page.startswith('<div class="parts" role="img" aria-label="Lines" style="--columns: 2; --narrow: 1">')
    title = "alignment before and after training with K = 4"
    assert page.count(f'<p class="title">{title}</p>') == 1
    legend, *panels = page.partition('<div class="legend">')[2].split('<svg class="panel"')
    assert re.findall(r">([^<>]+)</text>", legend) == ["pretrained", "SDPO", "DDPO", "REBEL"]
    assert [re.findall(r">([^<>]+)</text>", panel)[-1] for panel in panels] == ["seen prompts", "unseen prompts"]
    words = re.findall(r">([^<>]+)</text>", text)
    assert sorted([*re.findall(r">([^<>]+)</text>", page), title]) == sorted(words)
    assert page.count("<use ") == text.count("<use ")
    assert page.count("<path ") == text.count("<path ") - 1  # the figure's paper
    used, known = set(re.findall(r'href="#([^"]*)', page)), set(re.findall(r' id="([^"]*)', page))
    assert used == known
    assert all(name.startswith("f3-") for name in known)
    assert "#ffffff" not in page
    assert "var(--page)" in page
    assert ElementTree.fromstring(page.replace("xlink:", "")) is not None
    assert "--columns: 3; --narrow: 2" in inline(svg(paper_curves()), 1, "")


def test_a_smaller_file_says_the_same(group):
    """Only coordinates are rounded, never a number that is read."""
    with matplotlib.rc_context(TEXT):
        drawn = reward_curves(group, "samples", styles(group.labels))
        drawn.axes[0].set_title("2411.11727", loc="left")
        small, full = svg(drawn), style._bytes(drawn, ".svg").decode()
    texts = re.findall(r">([^<>]+)</text>", full)
    assert "2411.11727" in texts
    assert re.findall(r">([^<>]+)</text>", small) == texts
    assert len(small) < 0.7 * len(full)
    for tag in ("<path ", "<use ", "<text "):
        assert small.count(tag) == full.count(tag)


def test_a_sweep_has_curves_of_its_own_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_records, "PROMPTS", {"tuning": ("ant", "bee")})
    monkeypatch.setattr(synthetic_records, "EPOCHS", 10)
    rates = [f"SDPO {rate:g}" for rate in range(1, 12)]
    (sweep,) = load_groups(synthetic_records.write_profile(tmp_path, seeds=1, labels=tuple(rates)))
    figure = reward_curves(sweep, "samples", styles(sweep.labels))
    assert all(len(axis.get_lines()) == len(rates) + 1 for axis in figure.axes)
    assert "published" not in [drawing.name for drawing in drawings([sweep])]


def test_a_group_of_the_start_alone_has_figures(tmp_path):
    (alone,) = load_groups(study_records.write_study(tmp_path / "begun", ()))
    for drawing in drawings([alone]):
        with matplotlib.rc_context(TEXT):
            assert svg(drawing.draw()).startswith("<svg")
