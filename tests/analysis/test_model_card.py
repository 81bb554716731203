"""The model card of a run's weights: what it says, that hub tools read it, that no text of a run acts in it."""

from __future__ import annotations

import dataclasses
import re

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from support.synthetic_records import make_config, write_run
from test_hostile_texts import LABELS, Tags

from sdpo_bench.analysis.model_card import model_card
from sdpo_bench.records.reader import evaluation_means, load_run


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    config = make_config("SDPO", epochs=10, finetune="lora")
    return load_run(write_run(tmp_path_factory.mktemp("card"), config, pictures=False))


def with_config(record, **changes):
    return dataclasses.replace(record, config=record.config | changes)


def read(tmp_path, text: str) -> ModelCard:
    path = tmp_path / "README.md"
    path.write_text(text)
    return ModelCard.load(path)


def test_rewards_before_and_after(record):
    rows = [
        line.strip("| ").split(" | ") for line in model_card(record).splitlines() if re.match(r"\| \w+ \| seen", line)
    ]
    means = {(row["epoch"], row["reward"], row["steps"]): evaluation_means(row)["seen"] for row in record.eval}
    last = max(row["epoch"] for row in record.eval)
    assert len(rows) == len({(reward, steps) for _, reward, steps in means})
    for reward, _, steps, count, before, after, difference in rows:
        old, new = (means[epoch, reward, int(steps)] for epoch in (0, last))
        assert (before, after, difference) == (f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}")
        prompts, noises = map(int, count.split(" x "))
        values = next(row["values"]["seen"] for row in record.eval if row["epoch"] == last)
        assert (prompts, noises) == (len(values), len(next(iter(values.values()))))


def test_without_an_evaluation_before_training(record):
    card = model_card(dataclasses.replace(record, eval=[row for row in record.eval if row["epoch"]]))
    assert re.search(r"\| – \| \d\.\d{4} \| – \|", card)


def test_a_model_of_the_hub(record, tmp_path):
    text = model_card(with_config(record, model="stabilityai/sd-turbo", revision="abc"))
    data = read(tmp_path, text).data
    assert data.base_model == "stabilityai/sd-turbo"
    assert data.library_name == "diffusers"
    assert (data.license, data.license_link) == ("other", "https://huggingface.co/stabilityai/sd-turbo")
    assert {"lora", "sdpo", "text-to-image"} <= {*data.tags}
    assert 'from_pretrained("stabilityai/sd-turbo", revision="abc")' in text


def test_the_embedded_model(record, tmp_path):
    text = model_card(with_config(record, model="embedded"))
    data = read(tmp_path, text).data
    assert data.base_model is None  # the hub has none
    assert data.license_name == "mixed"
    assert "CC-BY 4.0" in text


def test_all_weights(record):
    text = model_card(with_config(record, finetune="full", model="a/b"))
    assert "This model is [a/b](https://huggingface.co/a/b), finetuned" in text
    assert 'DiffusionPipeline.from_pretrained("THIS FOLDER OR REPOSITORY")' in text
    assert "  - lora" not in text


def test_says_where_it_was_made(record):
    card = model_card(record)
    assert record.provenance["commit"] in card
    assert record.device in card
    assert f"torch {record.provenance['versions']['torch']}" in card


@pytest.mark.parametrize("label", [*LABELS, "a\n---\nlicense: gpl\n", "```\n<b>x</b>"])
def test_texts_do_not_act(record, tmp_path, label):
    changes = {"label": label, "reward": label, "model": label}
    provenance = record.provenance | {"command": label, "device": label}
    card = read(tmp_path, model_card(dataclasses.replace(with_config(record, **changes), provenance=provenance)))
    assert card.data.license == "unknown"
    parser = Tags()
    parser.feed(MarkdownIt("commonmark").enable("table").render(card.text))
    allowed = {"h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "em", "strong"}
    assert {tag for tag, _ in parser.found} <= allowed
    assert sum(tag == "h2" for tag, _ in parser.found) == 5
    assert sum(tag == "pre" for tag, _ in parser.found) == 2
