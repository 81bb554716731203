"""Figures: colours, what is drawn, and that they are files of the right kind."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import synthetic_records
from matplotlib.colors import to_rgb
from PIL import Image
from synthetic_records import STEPS, reported_profile

from sdpo_bench.figures import KNOWN, SPARE, picture_grid, reward_by_steps, reward_curves, styles
from sdpo_bench.tables import load_groups


@pytest.fixture(scope="module")
def group():
    return next(group for group in load_groups(reported_profile()) if group.steps == 4)


def test_colours_are_fixed_and_distinct():
    colours = [colour for colour, _ in KNOWN.values()] + list(SPARE)
    assert len(set(colours)) == len(colours)
    # No two methods' own lines come close, whatever palette follows.
    own = np.array([to_rgb(KNOWN[label][0]) for label in ("SDPO", "DDPO", "REBEL", "PRDP", "D3PO")])
    assert min(np.abs(a - b).sum() for i, a in enumerate(own) for b in own[:i]) > 0.4
    few, many = styles(["SDPO", "Mine"]), styles(["Yours", "SDPO", "Mine", "DDPO", "start"])
    assert few["SDPO"] == many["SDPO"]
    assert list(many) == ["start", "SDPO", "DDPO", "Mine", "Yours"]
    looks = [(style["color"], style["marker"]) for style in many.values()]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("counter", ["samples", "reward_queries"])
def test_curves_show_the_records(group, counter):
    figure = reward_curves(group, counter, styles(group.labels))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [f"{k} sampling step{'s' * (k > 1)}" for k in STEPS]
    last = figure.axes[1]
    lines = {line.get_color(): line for line in last.get_lines()}
    sdpo = lines[KNOWN["SDPO"][0]]
    assert sdpo.get_xdata()[-1] == {"samples": 3840, "reward_queries": 11520}[counter]
    final = np.mean(sorted(group.cell("SDPO", "alignment", "seen", 2).values())[1:-1])
    assert sdpo.get_ydata()[-1] == pytest.approx(final)
    assert len(last.collections) == 3  # a band a method
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert labels == ["start (untrained)", "SDPO", "DDPO", "REBEL"]
    assert "reward" in figure.axes[0].get_ylabel()
    assert all(axis.get_xlabel() for axis in figure.axes[-2:])


def test_reward_by_steps_has_a_panel_per_split(group):
    figure = reward_by_steps(group, styles(group.labels))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["seen prompts", "unseen prompts"]
    start = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(start.get_ydata(), [group.cell("start", "alignment", "seen", k)[0] for k in STEPS])


def test_pictures_show_the_shared_start_once(group):
    figure = picture_grid(group)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["before training", "SDPO, seed 0", "DDPO, seed 0", "REBEL, seed 0"]


def test_files(group):
    folder = reported_profile() / "figures"
    names = {path.name for path in folder.iterdir()}
    expected = {f"{stem}_alignment_k{k}.{kind}" for k in (4, 20) for kind in ("png", "svg")
                for stem in ("curves_samples", "curves_reward_queries", "steps")}
    assert names == expected | {f"pictures_alignment_k{k}.png" for k in (4, 20)}
    for path in folder.iterdir():
        data = path.read_bytes()
        assert not any(word in data for word in (b"Matplotlib v", b"dc:date", b"Software"))
        if path.suffix == ".svg":
            assert ElementTree.fromstring(data).tag.endswith("svg")
        else:
            with Image.open(path) as image:
                assert image.size[0] == 1350


def test_a_sweep_has_curves_of_its_own_prompts_and_no_page_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_records, "PROMPTS", {"tuning": ("ant", "bee")})
    monkeypatch.setattr(synthetic_records, "EPOCHS", 10)
    rates = [f"SDPO {rate:g}" for rate in range(1, 12)]
    (sweep,) = load_groups(synthetic_records.write_profile(tmp_path, seeds=1, labels=tuple(rates)))
    figure = reward_curves(sweep, "samples", styles(sweep.labels))
    assert all(len(axis.get_lines()) == len(rates) + 1 for axis in figure.axes)
    assert picture_grid(sweep) is None
