"""`sdpo-bench compare`: differences of two labels or two folders, and what must not be compared."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support.study_records import group_of, record
from support.synthetic_records import DEVICE, make_config, seal, write_profile, write_run

from sdpo_bench.analysis.compare import compare, compare_with_reference
from sdpo_bench.analysis.comparisons import load_groups
from sdpo_bench.cli import main
from sdpo_bench.errors import UserError
from sdpo_bench.records.reader import load_profile


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Five runs of SDPO and DDPO and two of REBEL; their spreads over seeds are the same for SDPO and DDPO."""
    folder = tmp_path_factory.mktemp("results")
    profile = write_profile(folder / "full", seeds=5, labels=("SDPO", "DDPO"))
    write_run(profile, make_config("REBEL", 7), pictures=False)
    return folder


@pytest.fixture
def run(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main.main(["compare", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_two_labels(results, run):
    code, out, err = run("ddpo", "SDPO", "--results", results, "--format", "csv")
    assert (code, err) == (0, "")
    frame = pd.read_csv(io.StringIO(out)).set_index(["split", "steps"])
    assert len(frame) == 2 * (4 + 1)
    group = load_groups(results / "full")[0]
    x, y = (group.cell(label, "alignment", "unseen", 8) for label in ("DDPO", "SDPO"))
    cell = frame.loc[("unseen", "8")]
    assert cell["difference"] == pytest.approx(sum(x[seed] - y[seed] for seed in x) / 5, abs=1e-6)
    assert cell["low"] == pytest.approx(cell["difference"], abs=1e-5), "what the seeds share cancels"
    assert cell["n"] == 5
    assert 0.5 < cell["probability"] < 1
    assert cell["probability_low"] < cell["probability"] < cell["probability_high"]
    assert frame.loc[("seen", "mean"), "difference"] == pytest.approx(
        frame.loc["seen"]["difference"].drop("mean").mean(), abs=1e-6
    )
    assert cell["seeds"] == "0 1 2 3 4"


def test_text_and_markdown(results, run):
    text, markdown = (run("SDPO", "DDPO", "--results", results, "--format", form)[1] for form in ("text", "markdown"))
    assert text.startswith("SDPO minus DDPO: alignment, trained on alignment with K = 4")
    cell = re.search(r"SDPO minus DDPO +(-0\.005 \[-0\.005, -0\.005\] \(n=5\))", text)
    assert cell
    assert f"| SDPO minus DDPO | {cell[1]} |" in markdown
    assert "*seen prompts: difference*" in markdown
    assert "20 intervals are shown" in text
    assert "They differ in: method {'clip': 0.001, 'name': 'sdpo'} and {'clip': 0.001, 'name': 'ddpo'}." in text


def test_the_start_stands_against_every_run(results, run):
    pairs = (("SDPO", "pretrained"), ("start", "SDPO"))  # its label in config.json
    after, before = (pd.read_csv(io.StringIO(run(*pair, "--results", results, "--format", "csv")[1])) for pair in pairs)
    assert set(after["n"]) == set(before["n"]) == {5}
    assert before["difference"].tolist() == pytest.approx([-value for value in after["difference"]])


def test_two_folders(results, tmp_path, run):
    """Another commit's runs of SDPO, each 0.1 lower."""
    other = write_profile(tmp_path / "full", seeds=5, labels=("SDPO",))
    for path in other.glob("raw/sdpo-*/eval.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            for prompts in row["values"].values():
                for prompt, values in prompts.items():
                    prompts[prompt] = [value - 0.1 for value in values]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        seal(path.parent)
    for path in other.glob("raw/*/provenance.json"):
        path.write_text(path.read_text().replace("0123456789abcdef" * 2, "f" * 32))
    code, out, _ = run(results / "full", other)
    assert code == 0
    assert re.search(r"SDPO +\+0\.100 \[\+0\.100, \+0\.100\] \(n=5\)", out)
    assert "DDPO" not in out, "only one folder has it"
    assert f"commit {load_profile(results / 'full')[0].provenance['commit']} and ffff" in out


def test_two_models(results, tmp_path):
    """Other models in the folders: paired if each has one."""
    other = tmp_path / "other"
    for seed in range(5):
        write_run(other, make_config("SDPO", seed, model="x/other"), pictures=False)
    (table,) = compare(str(results / "full"), str(other), Path())
    assert table.title.endswith("against x/other")
    write_run(other, make_config("DDPO", 0, model="x/third"), pictures=False)
    with pytest.raises(UserError, match="share no label"):
        compare(str(results / "full"), str(other), Path())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SDPO", "PPO"], r"unknown label 'PPO'; \S+full has: pretrained, SDPO, DDPO, REBEL"),
        (["SDPO", "full"], r"unknown label 'full'; .*REBEL; did you mean \S+full, as folders of results\?"),
        (["SDPO", "sdpo"], "SDPO and sdpo are the same; compare two of: pretrained, SDPO, DDPO, REBEL"),
        (["SDPO", "REBEL"], r"no seed in common: SDPO minus REBEL \(trained on alignment with K = 4"),
        (["SDPO", "DDPO", "--profile", "fulll"], "fulll has no records; --profile is one of: full"),
        (["SDPO", "DDPO", "--results", "nowhere"], "say with --results where the profiles are"),
        (["{results}/full", "DDPO"], r"expected two folders of results, each with records, packed or in a raw/ folder"),
        (["{results}/full", "{results}/none"], r"expected two folders of results"),
        (["{results}/full", "{results}/full"], "are the same folder"),
        (["SDPO"], "required"),
    ],
)
def test_bad_input(results, run, arguments, message):
    arguments = [text.format(results=results) for text in arguments]
    code, out, err = run(*arguments, *([] if "--results" in arguments else ["--results", results]))
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert re.search(message, err), err


def changed(profile: Path, name: str, change) -> None:
    for path in profile.glob(f"raw/sdpo-*/{name}"):
        rows = (
            [json.loads(line) for line in path.read_text().splitlines()]
            if name == "eval.jsonl"
            else [json.loads(path.read_text())]
        )
        for row in rows:
            change(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        seal(path.parent)


def renamed(row):
    row["values"]["seen"]["lynx"] = row["values"]["seen"].pop("cat")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("eval.jsonl", lambda row: row.update(noise_seeds=[9, 8, 7, 6]), r"not evaluated alike \(noises"),
        ("eval.jsonl", renamed, r"alike \(prompts: seen \['cat', 'dog', 'fox'\] and \['dog', 'fox', 'lynx'\]"),
        (
            "provenance.json",
            lambda row: row.update(rewards={"alignment": {"revision": "2", "scale": "cosine"}}),
            r"not evaluated alike \(reward's version",
        ),
    ],
)
def test_values_that_were_measured_otherwise_are_refused(results, tmp_path, name, change, message):
    other = write_profile(tmp_path / "full", seeds=1, labels=("SDPO",))
    changed(other, name, change)
    with pytest.raises(UserError, match=message):
        compare(str(results / "full"), str(other), Path())


def test_other_evaluation_settings_are_refused(results, tmp_path):
    other = write_run(tmp_path / "full", make_config("SDPO", 0, eta=0.5), pictures=False).parents[1]
    with pytest.raises(UserError, match=r"not evaluated alike \(settings: eta None and 0.5\)"):
        compare(str(results / "full"), str(other), Path())


def test_other_processors_are_named(results, tmp_path, run):
    """README's own line, on a processor that is not the committed results'."""
    other = write_run(tmp_path / "full", make_config("SDPO"), device="cuda: Test GPU", pictures=False).parents[1]
    code, out, err = run(results / "full", other)
    assert (code, err) == (0, "")
    assert f"embedded on {DEVICE}, against cuda: Test GPU" in out
    assert f"They differ in: processor {DEVICE} and cuda: Test GPU." in out
    assert re.search(r"SDPO +\+0\.000 \(n=1\)", out)


def test_the_same_processor_comes_first(results, tmp_path):
    """Another one's runs are taken only where the other folder has none of this one's."""
    other = tmp_path / "full"
    write_run(other, make_config("SDPO"), pictures=False)
    write_run(other, make_config("SDPO", 1), device="cuda: Test GPU", pictures=False)
    (table,) = compare(str(results / "full"), str(other), Path())
    assert "against" not in table.title
    assert set(table.frame["seeds"]) == {"0"}


def test_folders_with_one_label_each(tmp_path):
    """Two trainings, each in its folder, without a label in common."""
    for label in ("SDPO", "DDPO"):
        write_run(tmp_path / label, make_config(label, epochs=10), pictures=False)
    (table,) = compare(str(tmp_path / "SDPO"), str(tmp_path / "DDPO"), Path())
    assert table.blocks[0][1][0][0] == "SDPO minus DDPO"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Folders of runs in one folder of results, as `train` makes them."""
    profile = tmp_path_factory.mktemp("runs") / "train"
    made = {
        "a": make_config("SDPO", epochs=10),
        "b": make_config("DDPO", epochs=10, learning_rate=3e-4),
        "c": make_config("SDPO", epochs=10, learning_rate=3e-4, steps=8),
        "d": make_config("SDPO", 1, epochs=10),
        "eta": make_config("SDPO", epochs=10, eta=0.5),
    }
    folders = {
        name: write_run(profile, config, device="cuda: Test GPU" if name == "c" else DEVICE, pictures=False)
        for name, config in made.items()
    }
    return folders | {"open": write_run(profile, make_config("SDPO", 9, epochs=10), finished=False, pictures=False)}


def test_two_runs(runs, run):
    """Every reward that both have, paired by prompt; of the first minus the second."""
    code, out, err = run(runs["a"], runs["b"])
    assert (code, err) == (0, "")
    assert out.startswith(f"SDPO minus DDPO, embedded on {DEVICE}\n\nalignment, seen prompts")
    assert "alignment_heldout, unseen prompts" in out
    assert "learning_rate 0.0001 and 0.0003" in out
    frame = pd.read_csv(io.StringIO(run(runs["a"], runs["b"], "--format", "csv")[1]))
    assert set(frame["label"] + frame["baseline"]) == {"SDPODDPO"}
    assert (frame["value"] - frame["baseline_value"]).tolist() == pytest.approx(frame["difference"].tolist(), abs=1e-5)
    one = load_profile(runs["a"].parents[1], means=True, names=[runs["a"].name])[0]
    last = next(row for row in one.eval if (row["epoch"], row["reward"], row["steps"]) == (10, "alignment", 2))
    cell = frame.query("reward == 'alignment' and steps == 2 and split == 'seen'")
    assert cell["value"].item() == pytest.approx(last["means"]["seen"], rel=1e-5)


def test_two_runs_of_a_label_are_named_by_what_differs(runs):
    (table,) = compare(str(runs["a"]), str(runs["c"]), Path())
    first, second = "SDPO, learning_rate 0.0001, steps 4", "SDPO, learning_rate 0.0003, steps 8"
    assert table.title == f"{first} minus {second}, embedded on {DEVICE}, embedded on cuda: Test GPU"
    assert [row[0] for row in table.blocks[0][1]] == [first, second, "difference", ""]
    (table,) = compare(str(runs["a"]), str(runs["d"]), Path())
    assert table.title.startswith("SDPO, seed 0 minus SDPO, seed 1, ")


def test_packed_runs():
    quick = Path(main.__file__).parents[2] / "results" / "quick"
    names = [next(run for run in load_profile(quick, means=True) if run.label == label) for label in ("SDPO", "DDPO")]
    (table,) = compare(*(str(quick / "raw" / run.run_id) for run in names), Path())
    assert table.title.startswith("SDPO minus DDPO, embedded on cpu: ")
    assert {"alignment", "alignment_heldout"} <= set(table.frame["reward"])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("a", "eta"), r"not evaluated alike \(settings: eta None and 0.5\)"),
        (("a", "open"), "the run is not finished; continue it with --resume"),
    ],
)
def test_two_runs_that_cannot_be_compared(runs, pair, message):
    with pytest.raises(UserError, match=message):
        compare(*(str(runs[name]) for name in pair), Path())


OTHERS = ({"steps": 20}, {"reward": "jpeg"}, {"device": "cuda: Test GPU"})


def write_other(profile: Path, reward: str = "alignment", device: str = DEVICE, **changes) -> None:
    seed = 0 if device == DEVICE else 1  # a configuration has one folder, whatever the device
    write_run(
        profile,
        make_config("SDPO", seed, epochs=10, reward=reward, **changes),
        device=device,
        pictures=False,
        rewards=(reward,),
    )


@pytest.mark.parametrize("other", OTHERS[:2], ids=lambda other: next(iter(other)))
def test_folders_that_differ_in_reward_or_k_share_nothing(tmp_path, other):
    for seed in (0, 1):
        write_run(tmp_path / "a", make_config("SDPO", seed, epochs=10), pictures=False)
    write_other(tmp_path / "b", **other)
    with pytest.raises(UserError, match="share no label trained on the same reward with the same K"):
        compare(str(tmp_path / "a"), str(tmp_path / "b"), Path())
    text = compare_with_reference(load_groups(tmp_path / "b"), load_groups(tmp_path / "a"))
    assert "\nreference: none, nothing to compare with\n" in text


def test_the_reference_may_be_of_another_device(tmp_path):
    write_other(tmp_path / "a")
    write_other(tmp_path / "b", device="cuda: Test GPU")
    text = compare_with_reference(load_groups(tmp_path / "b"), load_groups(tmp_path / "a"))
    assert "\nreference: cpu: Test Processor\n" in text


def test_folders_are_paired_by_device_reward_and_k(tmp_path):
    """Both folders have four groups, of which each pair differs in one or two of the three."""
    for folder in ("a", "b"):
        for changes in ({}, *OTHERS):
            write_other(tmp_path / folder, **changes)
    tables = compare(str(tmp_path / "a"), str(tmp_path / "b"), Path())
    assert len(tables) == 4
    for table in tables:
        assert "Their settings, processors and commits are the same." in table.note, "the same run of both folders"
        assert (table.frame["difference"] == 0).all()
    found = {
        (row["device"], row["reward_trained"], row["training_steps"])
        for table in tables
        for row in table.frame.to_dict("records")
    }
    assert found == {
        (DEVICE, "alignment", 4),
        (DEVICE, "alignment", 20),
        (DEVICE, "jpeg", 4),
        ("cuda: Test GPU", "alignment", 4),
    }


def test_the_reference_has_the_same_model(tmp_path):
    write_other(tmp_path / "a")
    write_other(tmp_path / "b", model="x/other")
    text = compare_with_reference(load_groups(tmp_path / "b"), load_groups(tmp_path / "a"))
    assert "\nreference: none, nothing to compare with\n" in text


def test_it_needs_no_torch(results):
    code = (
        "import sys; from sdpo_bench.cli.main import main\n"
        f"assert main(['compare', 'SDPO', 'DDPO', '--results', {str(results)!r}]) == 0\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(main.__file__).parents[2], stdout=subprocess.DEVNULL
    )


def runs_of(values: dict[str, list[tuple[float, float]]]):
    """A group of runs that end at these values with 1 and 2 sampling steps, by label and seed."""
    return group_of(
        [
            record(label, seed, {10: {("alignment", 1): one, ("alignment", 2): two}}, [])
            for label, runs in values.items()
            for seed, (one, two) in enumerate(runs)
        ]
    )


def test_tolerances_and_verdicts_by_hand(monkeypatch):
    """With 1 step the reference's runs of SDPO deviate by -1 and 1 from their mean, of DDPO by -1, 0, 1, of REBEL there
    is one: squares 2 + 2 + 0, degrees of freedom 1 + 2 + 0, so the pooled standard deviation is sqrt(4 / 3) = 1.154701.
    Student's t of 3 degrees at 0.975 is 3.182446; their product is 3.674772. It is multiplied by the root of
      SDPO, 2 runs and 2: 1/2 + 1/2 = 1    ->  3.675
      DDPO, 1 run and 3:  1/1 + 1/3 = 4/3  ->  4.243
      REBEL, 1 run and 1: 1 + 1 = 2        ->  5.197
    The start's is 1 % of the reference's value, 0.5: 0.005. With 2 steps all deviations are a tenth: 0.367, 0.424 and
    0.520.
    """
    reference = {
        "pretrained": [(0.5, 0.5)],
        "SDPO": [(1.0, 0.1), (3.0, 0.3)],
        "DDPO": [(4.0, 0.4), (5.0, 0.5), (6.0, 0.6)],
        "REBEL": [(7.0, 0.7)],
        "D3PO": [(1.0, 1.0)],
    }
    mine = {
        "pretrained": [(0.504, 0.506)],
        "SDPO": [(5.6, 0.5), (5.7, 0.64)],
        "DDPO": [(9.25, 0.92)],
        "REBEL": [(1.9, 1.23)],
        "PRDP": [(1.0, 1.0)],
    }
    lines = compare_with_reference([runs_of(mine)], [runs_of(reference)]).splitlines()
    assert [line.split() for line in lines if line.startswith("seen")] == [
        ["seen", "pretrained", "1", "0.504", "(n=1)", "0.500", "(n=1)", "0.005", "within"],
        ["seen", "SDPO", "1", "5.650", "(n=2)", "2.000", "(n=2)", "3.675", "within"],  # by 3.65
        ["seen", "DDPO", "1", "9.250", "(n=1)", "5.000", "(n=3)", "4.243", "OUTSIDE"],  # by 4.25
        ["seen", "REBEL", "1", "1.900", "(n=1)", "7.000", "(n=1)", "5.197", "within"],  # by 5.1
        ["seen", "PRDP", "1", "1.000", "(n=1)", "–", "–", "not", "in", "both"],
        ["seen", "D3PO", "1", "–", "1.000", "(n=1)", "–", "not", "in", "both"],
        ["seen", "pretrained", "2", "0.506", "(n=1)", "0.500", "(n=1)", "0.005", "OUTSIDE"],
        ["seen", "SDPO", "2", "0.570", "(n=2)", "0.200", "(n=2)", "0.367", "OUTSIDE"],  # by 0.37
        ["seen", "DDPO", "2", "0.920", "(n=1)", "0.500", "(n=3)", "0.424", "within"],  # by 0.42
        ["seen", "REBEL", "2", "1.230", "(n=1)", "0.700", "(n=1)", "0.520", "OUTSIDE"],  # by 0.53
        ["seen", "PRDP", "2", "1.000", "(n=1)", "–", "–", "not", "in", "both"],
        ["seen", "D3PO", "2", "–", "1.000", "(n=1)", "–", "not", "in", "both"],
    ]
    assert lines[-1] == ("4 of 8 values within tolerance; about 1 in 20 falls outside by chance; 4 not compared.")
