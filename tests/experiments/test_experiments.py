"""Profiles: what is compared is balanced and alike in everything but the method."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model, learning_rates, profiles, variants
from sdpo_bench.experiments.cost_model import GPUCost
from sdpo_bench.experiments.profiles import PROFILES, build, config_from_json
from sdpo_bench.experiments.variants import VARIANTS
from sdpo_bench.methods import METHODS
from sdpo_bench.records import protocols
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.plan import write_plan
from sdpo_bench.records.reader import load_profile

ROOT = Path(__file__).parents[2]
# What may differ between the methods of one cell.
FREE = {"method", "options", "learning_rate", "seed", "label", "probe_every"}


@pytest.mark.parametrize("name", PROFILES)
def test_runs_are_distinct_and_survive_json(name):
    configs = build(name)
    ids = [run_id(config.to_json()) for config in configs]
    assert len(set(ids)) == len(ids)
    for config in configs:
        assert config_from_json(json.loads(json.dumps(config.to_json()))).to_json() == config.to_json()
    assert sum(config.epochs == 0 for config in configs) == 1, "one start"


@pytest.mark.parametrize("name", PROFILES)
def test_a_label_is_one_configuration(name):
    """What tables demand of a row: but for the seed, the runs of a label, reward and K agree."""
    seen: dict[tuple[object, ...], dict[str, object]] = {}
    for config in build(name):
        row = {k: v for k, v in config.to_json().items() if k != "seed"}
        assert seen.setdefault((config.reward, config.steps, config.label), row) == row


@pytest.mark.parametrize("name", PROFILES)
def test_methods_differ_in_nothing_else(name):
    cells: dict[tuple[object, ...], list[RunConfig]] = {}
    for config in build(name):
        if config.epochs:
            cells.setdefault((config.reward, config.steps), []).append(config)
    ablated = {variant.label: variant.changes.keys() for variant in VARIANTS.values()}

    def compared(config):
        """Pairs as samples: methods of larger groups have fewer of these."""
        size = config.samples_per_group
        counts = {name: size * getattr(config, name) for name in ("pairs", "pairs_per_update")}
        return vars(config) | counts

    for configs in cells.values():
        for config in configs:
            label = config.label if config.label in ablated else config.label.rsplit(" ", 1)[0]  # "SDPO 0.001"
            free = FREE | ablated[label]
            rest = {k: v for k, v in compared(config).items() if k not in free}
            assert rest == {k: compared(configs[0])[k] for k in rest}


@pytest.mark.parametrize("name", ["quick", "first_look", "full"])
def test_every_prefix_is_balanced(name):
    """Stopped anywhere, a profile has as many seeds of one method as of another in every cell, give or take one; of
    ablations, which come after the methods, too."""
    configs = [config for config in build(name) if config.epochs]

    def cell_of(config):
        return config.reward, config.steps, " (" in config.label

    cells = {cell_of(c): sorted({d.label for d in configs if cell_of(d) == cell_of(c)}) for c in configs}
    counts: Counter[tuple[object, ...]] = Counter()
    for config in configs:
        cell = cell_of(config)
        counts[*cell, config.label] += 1
        seeds = {label: counts[*cell, label] for label in cells[cell]}
        assert max(seeds.values()) - min(seeds.values()) <= 1
    assert len(set(counts.values())) == 1


def test_quick_is_what_the_benchmark_promises():
    configs = build("quick")
    trained = [config for config in configs if config.epochs]
    assert configs[0].label == "start"
    assert {config.method for config in trained} == set(variants.STUDIED) < set(METHODS)
    assert {config.seed for config in trained} == {0, 1}
    assert {(config.steps, config.reward, config.train_last_step) for config in trained} == {(4, "alignment", False)}


@pytest.mark.parametrize("name", ["sweep", "sweep_k8", "sweep_k20", "sweep_k50", "sweep_jpeg", "sweep_jpeg_k20"])
def test_sweeps_share_no_data_with_what_is_reported(name):
    swept = build(name)
    reported = [config for other in ("quick", "first_look", "full") for config in build(other)]
    assert {config.eval_splits for config in swept} == {("tuning",)}
    assert not {config.seed for config in swept if config.epochs} & {config.seed for config in reported}
    assert not {config.eval_seed for config in swept} & {config.eval_seed for config in reported}
    rates: dict[str, list[float]] = {}
    for config in swept:
        if config.epochs:
            rates.setdefault(config.label.rsplit(" ", 1)[0], []).append(config.learning_rate)
    assert set(map(tuple, rates.values())) == {learning_rates.SWEEP}, "the same sweep for every method"


@pytest.mark.parametrize("steps", [20, 4])
def test_the_papers_comparison_shares_its_rate_and_has_the_papers_length(steps):
    configs = [config for config in build(f"paper_k{steps}") if config.epochs]
    assert {config.learning_rate for config in configs} == {profiles.SHARED_RATE}
    assert {2 * config.pairs * config.epochs for config in configs} == {29_184}  # results/paper: the curves' last point
    assert {config.epochs // config.eval_every for config in configs} == {24}
    assert {(config.steps, config.eval_steps) for config in configs} == {(steps, (1, 2, 4, 8, 16, 50))}
    assert {config.label for config in configs[:20]} == {"SDPO", "DDPO", "REBEL", "D3PO"}
    beside = [config for config in build(f"paper_k{steps}_rates") if config.epochs]
    rates = {config.learning_rate for config in beside}
    assert min(rates) < profiles.SHARED_RATE < max(rates)
    assert {*rates, profiles.SHARED_RATE} <= {3e-6, *learning_rates.SWEEP}


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_a_profile_follows_its_protocol(name):
    """Rates of a reward and K: one for all, or each method's own, or several for each."""
    names = {variant.label: name for name, variant in VARIANTS.items()}
    rates: dict[tuple[str, int], dict[str, set[float]]] = {}
    for config in build(name):
        if config.epochs:
            label = config.label.removesuffix(f" {config.learning_rate:g}")
            rates.setdefault((config.reward, config.steps), {}).setdefault(label, set()).add(config.learning_rate)
    protocol = protocols.protocol_of(name)
    for (reward, steps), by_label in rates.items():
        first = next(iter(by_label.values()))
        for label, found in by_label.items():
            own = {learning_rates.learning_rate(names[label], steps, reward)} if protocol == "tuned" else first
            assert found == own
        assert (len(first) > 1) == (protocol == "sweep" or "rates" in name)
    assert protocol == profiles.PROFILES[name].protocol
    assert protocols.PROFILES.keys() == profiles.PROFILES.keys()
    assert protocols.described(name).startswith(f"{protocol} (")
    assert protocols.described("train") == ""


def test_a_comparison_with_the_start_costs_its_sampling():
    """Of 3 evaluations each one samples twice, or the last one alone does."""
    settings = {"epochs": 10, "eval_every": 5, "eval_steps": (1, 4), "eval_last_steps": (8,)}
    plain = RunConfig(**settings)
    each = cost_model.images_each(plain)
    for changes, before, last in (
        ({}, 2, 1),
        ({"eval_last_rewards": ("kid_start",)}, 2, 2),
        ({"eval_rewards": ("kid_start",)}, 4, 2),
        ({"eval_rewards": ("vendi",)}, 2, 1),
    ):
        config = RunConfig(**settings | changes)
        assert cost_model.sampled_images(config) == (before * each, last * each)
        assert cost_model.work(config)["evaluate"] == each * ((before + last) * 5 + last * 8)
        assert cost_model.evaluated_images(config) == 3 * each
    dearer = GPUCost().seconds(RunConfig(**settings, eval_last_rewards=("kid_start",))) - GPUCost().seconds(plain)
    tflop = each * (5 * GPUCost.forward + 2 * GPUCost.decode)
    assert dearer == pytest.approx(tflop / (GPUCost.peak * GPUCost.utilisation))


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("tuned", 1), ("jpeg", 4), ("settings", 4), ("prompts", 4), ("lora_rates", 4)],
)
def test_the_papers_other_settings_have_their_length(name, ratio):
    """The paper's samples or a quarter of them; four times as many an epoch do not divide it evenly."""
    configs = [config for config in build(f"paper_k20_{name}") if config.epochs]
    samples = {2 * config.pairs * config.epochs for config in configs}
    assert samples <= {29_184 // ratio, *([28 * 256] if name == "settings" else [])}
    assert {config.steps for config in configs} == {20}


def test_why_has_as_many_inner_epochs_as_trained_steps():
    for steps in (4, 20):
        configs = build(f"paper_why_k{steps}", seeds=[0])
        inner = {config.label: config for config in configs if config.inner_epochs > 1}
        assert {f"{name} ({steps - 1} inner epochs)" for name in ("DDPO", "REBEL", "PRDP")} == inner.keys()
        assert {config.inner_epochs for config in inner.values()} == {config.trained_steps for config in configs[1:]}
        betas = {config.options["beta"] for config in configs if config.label.startswith("PRDP (beta")}
        assert betas == {0.1, 10}


def test_higher_rates_are_tried_where_the_best_is_the_sweeps_highest():
    at_the_edge = {
        name for name in variants.RECENT if learning_rates.learning_rate(name, 4) == max(learning_rates.SWEEP)
    }
    assert set(profiles.AT_THE_EDGE) == at_the_edge
    assert min(profiles.EDGE_RATES) == max(learning_rates.SWEEP)
    swept = build("recent_sweep_edge")
    assert {(config.eval_splits, config.eval_seed) for config in swept} == {(("tuning",), 1)}


def test_the_pilot_shares_no_data_with_the_papers_comparison():
    pilot = build("paper_pilot")
    assert {(config.eval_splits, config.train_split) for config in pilot if config.epochs} == {(("tuning",), "tuning")}
    assert profiles.SHARED_RATE in {config.learning_rate for config in pilot}
    reported = build("paper_k20")
    assert not {config.seed for config in pilot if config.epochs} & {config.seed for config in reported}
    assert not {config.eval_seed for config in pilot} & {config.eval_seed for config in reported}


def test_evaluations_on_the_way_may_take_fewer_noises():
    config = RunConfig(epochs=10, eval_every=5, eval_noises=4, eval_start=False)
    each = cost_model.images_each(config)
    assert cost_model.evaluated_images(config) == 2 * each
    few = RunConfig(epochs=10, eval_every=5, eval_noises=4, eval_start=False, eval_interim_noises=1)
    assert cost_model.evaluated_images(few) == each // 4 + each
    assert cost_model.sampled_images(few) == (each // 4, each)
    with pytest.raises(UserError, match="--eval-interim-noises is 5; expected 1 to --eval-noises"):
        RunConfig(eval_interim_noises=5)
    with pytest.raises(UserError, match="--prompt-stats-min-count is 40; expected 1 to --prompt-stats-buffer"):
        RunConfig(prompt_stats_min_count=40)


def test_learning_rates_are_of_the_sweep():
    for methods in (learning_rates.LEARNING_RATES, *learning_rates.REWARD_RATES.values()):
        for rates in methods.values():
            assert set(rates.values()) <= set(learning_rates.SWEEP)
    assert learning_rates.learning_rate("ddpo", 4) == learning_rates.LEARNING_RATES["ddpo"][4]
    assert learning_rates.learning_rate("d3po", 40) == learning_rates.LEARNING_RATES["d3po"][50]
    assert learning_rates.learning_rate("ddpo", 6) == learning_rates.LEARNING_RATES["ddpo"][8]
    assert learning_rates.learning_rate("ddpo_per_step", 8) == learning_rates.LEARNING_RATES["ddpo_per_step"][4]
    jpeg = learning_rates.REWARD_RATES["jpeg_compressibility"]
    assert learning_rates.learning_rate("ddpo", 4, "jpeg_compressibility") == jpeg["ddpo"][4]
    assert learning_rates.learning_rate("ddpo_last_step", 20, "jpeg_compressibility") == jpeg["ddpo"][20]
    assert learning_rates.learning_rate("ddpo", 4, "colourfulness") == learning_rates.LEARNING_RATES["ddpo"][4]
    with pytest.raises(UserError, match="--profile sweep --methods mine"):
        learning_rates.learning_rate("mine", 4)


def test_narrowing_and_widening():
    configs = build("first-look", ["ddpo-per-step", "sdpo"], [7])
    assert [(c.label, c.steps, c.seed) for c in configs[1:]] == [
        ("DDPO (per step)", 4, 7),
        ("SDPO", 4, 7),
        ("DDPO (per step)", 20, 7),
        ("SDPO", 20, 7),
    ]
    assert configs[1].updates == "step"
    with pytest.raises(UserError, match="unknown profile 'quik'; choose one of: first_look, full, paper_k20"):
        build("quik")
    with pytest.raises(UserError, match="unknown method 'ppo'; choose one of: crd, d3po, d3po_128_pairs, d3po_last"):
        build("quick", ["ppo"])
    with pytest.raises(UserError, match="without repeats"):
        build("quick", None, [0, 0])


def test_costs_are_learned_from_records(tmp_path):
    assert "constants" in cost_model.calibrate([tmp_path]).source
    config = build("quick", ["sdpo"], [0])[1]
    units = cost_model.work(config)
    assert units["train"] == 2 * config.pairs * config.epochs * 3
    assert units["reward"] == 5 * config.pairs * config.epochs
    folder = tmp_path / "quick" / "raw" / "x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    (folder / "provenance.json").write_text('{"device": "cpu: x"}')
    seconds = {kind: 2.0 * amount for kind, amount in units.items()}
    (folder / "done.json").write_text(json.dumps({"seconds": seconds}))
    cost = cost_model.calibrate([tmp_path / "quick"])
    assert cost.source == "1 recorded runs"
    assert cost.seconds(config) == pytest.approx(sum(seconds.values()) + cost.startup)
    (folder / "done.json").write_text("{")  # an estimate does not fail for a broken record
    assert "constants" in cost_model.calibrate([tmp_path / "quick"]).source


def test_other_supported_versions_fit_the_requirements():
    """The newest and the oldest environments the suite is used in; constraints.txt pins a third."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert Version("3.12") in SpecifierSet(project["requires-python"])
    ranges = {requirement.name: requirement.specifier for requirement in map(Requirement, project["dependencies"])}
    assert Version("2.11") in ranges["torch"]
    assert Version("5.17") in ranges["transformers"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {name: Version(number) for name, number in (line.split("==") for line in lines if "==" in line)}
    for name, versions in ranges.items():
        assert name == "sdpo-kernels" or pins[name] in versions  # which is of this repository
    assert not any(version.local for version in pins.values()), "a local version would refuse the other builds"


def test_the_committed_plan_of_the_study_is_the_profile(tmp_path):
    """So that the study's pages say what is missing of it. Else: `reproduce --profile full --results results --resume`,
    which may be stopped once it runs."""
    folder = ROOT / "results" / "full"
    write_plan(tmp_path, [config.to_json() | {"run_id": run_id(config.to_json())} for config in build("full")])
    assert (folder / "plan.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    planned = {row["run_id"] for row in json.loads((tmp_path / "plan.json").read_text())}
    assert {record.run_id for record in load_profile(folder)} <= planned, "no run of an earlier study is left"


@pytest.mark.parametrize("profile", [name for name in PROFILES if name.startswith("sweep")])
def test_learning_rates_are_what_the_committed_sweeps_say(profile):
    """The rate whose run has the highest mean of the optimised reward on the tuning prompts, over all step counts."""
    best = {}
    for record in load_profile(ROOT / "results" / profile):
        if record.label != "pretrained":
            steps, reward = record.config["steps"], record.config["reward"]
            last = [row for row in record.eval if row["epoch"] == record.config["epochs"]]
            last = [row for row in last if row["reward"] == reward]
            values = [v for row in last for prompt in row["values"]["tuning"].values() for v in prompt]
            rate = (sum(values) / len(values), record.config["learning_rate"])
            label = record.label.rpartition(" ")[0]
            best[label] = max(best.get(label, rate), rate)
    labels = {VARIANTS[name].label: name for name in PROFILES[profile].methods}
    assert best.keys() == labels.keys()
    for label, (_, rate) in best.items():
        rates = learning_rates.REWARD_RATES.get(reward, learning_rates.LEARNING_RATES)
        assert rates[labels[label]][steps] == rate, label


def test_methods_with_larger_groups_have_as_many_samples():
    """Pairs of the others and groups of GRPO: the same samples an epoch and an update, so the same cost."""
    for name in ("paper_k4", "sweep", "sd_turbo"):
        configs = [config for config in profiles.build(name, ["ddpo", "grpo"], [0]) if config.epochs]
        found = {
            (config.method, config.reward): tuple(
                config.samples_per_group * count for count in (config.pairs, config.pairs_per_update)
            )
            for config in configs
        }
        for method, reward in found:
            assert found[method, reward] == found["ddpo", reward], name
        assert {config.samples_per_group for config in configs} == {2, 8}
    with pytest.raises(UserError, match=r"6 samples .* cannot be divided into groups of 8"):
        profiles.in_groups("grpo", {"pairs": 3})
