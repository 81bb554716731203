"""What there is to choose from is listed once: the catalogue, the classes, tables, figures and the study agree."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sdpo_bench import catalogue
from sdpo_bench.analysis import paper
from sdpo_bench.analysis.comparisons import ORDER, PRETRAINED, parent
from sdpo_bench.analysis.figures import dense, style
from sdpo_bench.analysis.tables.ablations import CROSSED
from sdpo_bench.catalogue import BUDGETS, DENSE_REWARDS, SAMPLERS, Entry, declared
from sdpo_bench.dense_rewards import PLANS, Plan
from sdpo_bench.experiments.variants import PAPER_METHODS, VARIANTS
from sdpo_bench.methods import METHODS, Method
from sdpo_bench.policies import FAMILIES


def test_the_catalogue_reads_what_the_classes_say():
    assert {entry.name: entry.title for entry in catalogue.METHODS} == {n: cls.title for n, cls in METHODS.items()}
    assert {e.name: (e.meaning, e.queries) for e in DENSE_REWARDS} == {
        name: (plan.meaning, plan.queries) for name, plan in PLANS.items()
    }
    for entry, cls in [(e, METHODS[e.name]) for e in catalogue.METHODS] + [
        (e, type(PLANS[e.name])) for e in DENSE_REWARDS
    ]:
        for name in ("row", "colour", "marker", "budget"):
            if name in vars(cls):
                assert getattr(entry, name) == vars(cls)[name], (entry.name, name)
    assert {*SAMPLERS} == {"auto"} | {sampler for family in FAMILIES.values() for sampler in family.samplers}


def test_what_tables_and_figures_take_from_it():
    titles = [cls.title for cls in METHODS.values()]
    assert ORDER == (
        PRETRAINED,
        "SDPO",
        "SDPO-causal",
        "DDPO",
        "DDPO-dense",
        "REBEL",
        "PRDP",
        "D3PO",
        "GRPO",
        "GRPO-Guard",
        "Flow-DPPO",
        "DenseGRPO",
        "DiffusionNFT",
        "CRD",
        "PSO",
        "DRaFT",
        "RTDMD-lite",
        "DDPO-critic",
    )
    assert list(BUDGETS) == ["terminal", "2", "3", "4", "adaptive", "linear3"]
    for entries in (catalogue.METHODS, DENSE_REWARDS):
        rows = [entry.row for entry in entries if entry.row is not None]
        assert rows == list(range(1, len(rows) + 1))
    assert {*style.KNOWN} == {*ORDER}, "a method with a row has a colour too"
    colours = [colour for colour, _ in style.KNOWN.values()] + [look["color"] for look in dense.LOOKS.values()]
    assert len({*colours}) == len(colours)
    assert tuple(METHODS[name].title for name in PAPER_METHODS) == paper.METHODS
    labels = {variant.label for variant in VARIANTS.values()}
    assert {parent(label) or label for label in labels} <= {*titles}
    assert {label for pair in CROSSED for label in pair} <= labels


def test_what_is_declared(tmp_path):
    """Plain values of a class's own body; a subclass inherits none, and what is no constant is not read."""
    (tmp_path / "a.py").write_text(
        'import nothing\nclass Base:\n    title = "none"\nclass One(Base):\n    """Text."""\n    name: str = "one"\n'
        '    title = "One"\n    row = 2\n    colour = "#" + "fff"\n    other = 3\nclass Two(One):\n    name = "two"\n'
    )
    (tmp_path / "b.py").write_text('class Three:\n    name = "three"\n    row = 1\n    marker = "o"\n')
    expected = (Entry("three", row=1, marker="o"), Entry("one", "One", 2), Entry("two"))
    assert declared(tmp_path, Entry) == expected


@pytest.mark.parametrize("base", [Method, Plan])
def test_classes_are_found_once(base):
    module = sys.modules[base.__module__.removesuffix(".base")]
    found = catalogue.classes(module.__name__, module.__path__, base)
    assert len({*found}) == len(found) == len(METHODS if base is Method else PLANS)


def test_no_pytorch_is_needed():
    code = (
        "import sys; import sdpo_bench.catalogue, sdpo_bench.config, sdpo_bench.cli.main\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
