"""The model card (README.md) of the weights that a run saved, from the run's records."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from sdpo_bench.analysis.markup import DASH, escaped, grid
from sdpo_bench.records.files import to_json
from sdpo_bench.records.reader import RunRecord, evaluation_means

EMBEDDED = "embedded"  # config.EMBEDDED, which this layer does not see
SPRITES = (
    "The base model was trained on emoji of Noto (Apache-2.0), Fluent (MIT, Microsoft) and Twemoji (CC-BY 4.0, "
    "Twitter, Inc. and other contributors). Credit these sets when you share pictures."
)


def model_card(record: RunRecord) -> str:
    """The card of a run's weights, Markdown with YAML front matter, as huggingface_hub reads it."""
    config = record.config
    kind = "LoRA" if config["finetune"] == "lora" else "model"
    method, model, reward = config["method"]["name"], _line(config["model"]), _line(config["reward"])
    lines = [
        f"# {_line(config['label'])} on {reward}",
        "",
        f"This {kind} is {_named(config, model)}, finetuned by reinforcement learning with sdpo-bench: "
        f"method `{method}`, reward {reward}, {config['steps']} denoising steps in training, "
        f"{record.train[-1]['samples']:,} samples.",
        "",
        "## Use",
        "",
        "```python",
        *_use(config),
        "```",
        "",
        "## Rewards",
        "",
        *_rewards(record),
        "",
        "This is one run with one seed, so the differences have no interval.",
        "",
        "## Settings",
        "",
        "```json",
        to_json(config, indent=1),
        "```",
        "",
        "## Where it was made",
        "",
        *_provenance(record.provenance),
        "",
        "## Licence",
        "",
        _licence(config, model),
    ]
    return str(ModelCard(f"---\n{_metadata(config, kind).to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))


def _line(text: str) -> str:
    return escaped(" ".join(text.split()))


def _is_on_hub(config: dict[str, Any]) -> bool:
    """Whether the model is a hub id. config.json has only the name of a folder, so only a hub id has a slash."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", config["model"]) is not None


def _named(config: dict[str, Any], model: str) -> str:
    if config["model"] == EMBEDDED:
        return "the small model that sdpo-bench contains"
    return (
        f"[{model}](https://huggingface.co/{model})" if _is_on_hub(config) else f"a model from a folder named {model}"
    )


def _metadata(config: dict[str, Any], kind: str) -> ModelCardData:
    licence: dict[str, Any] = {"license": "unknown"}
    if config["model"] == EMBEDDED:
        licence = {"license": "other", "license_name": "mixed"}
    elif _is_on_hub(config):
        link = f"https://huggingface.co/{config['model']}"
        licence = {"license": "other", "license_name": "as-the-base-model", "license_link": link}
    tags = ["sdpo-bench", "reinforcement-learning", "text-to-image", config["method"]["name"]]
    return ModelCardData(
        base_model=config["model"] if _is_on_hub(config) else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*tags, "lora"] if kind == "LoRA" else tags,
        **licence,
    )


def _use(config: dict[str, Any]) -> list[str]:
    """Lines of Python that load the weights; texts of the run appear in them as JSON strings, which Python reads."""
    if config["finetune"] == "full":
        return [
            "from diffusers import DiffusionPipeline",
            "",
            'pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER OR REPOSITORY")',
        ]
    if config["model"] == EMBEDDED:
        lines = ["import sdpo_bench", "", "pipeline = sdpo_bench.embedded_pipeline()"]
    else:
        revision = f", revision={to_json(config['revision'])}" if config.get("revision") else ""
        base = f"DiffusionPipeline.from_pretrained({to_json(config['model'])}{revision})"
        lines = ["from diffusers import DiffusionPipeline", "", f"pipeline = {base}"]
    if config.get("adapter"):
        lines.append(f"# First load the adapter that this run kept frozen, {to_json(config['adapter'])}, and fuse it.")
    lines.append('pipeline.load_lora_weights("THIS FOLDER OR REPOSITORY")')
    if config["model"] == EMBEDDED:
        lines.append('picture = pipeline("cat", num_inference_steps=4, guidance_scale=1).images[0]')
    return lines


def _rewards(record: RunRecord) -> list[str]:
    """Means before and after training, over the same noises."""
    noises = record.interim_noises
    last = max(row["epoch"] for row in record.eval)
    before = {(row["reward"], row["steps"]): evaluation_means(row, noises) for row in record.eval if not row["epoch"]}
    rows = []
    for row in record.eval:
        if row["epoch"] == last:
            for split, mean in evaluation_means(row, noises).items():
                old = before.get((row["reward"], row["steps"]), {}).get(split)
                numbers = (DASH, DASH) if old is None else (f"{old:.4f}", f"{mean - old:+.4f}")
                count = f"{len(row['values'][split])} x {noises or len(row['noise_seeds'])}"
                rows.append((row["reward"], split, str(row["steps"]), count, numbers[0], f"{mean:.4f}", numbers[1]))
    header = ("reward", "prompts", "sampling steps", "prompts x noises", "before", "after", "difference")
    return grid(header, rows)


def _provenance(found: dict[str, Any]) -> list[str]:
    commit = found.get("commit") or f"no commit; source {found.get('source', DASH)}"
    rows = [
        ("commit of sdpo-bench", f"{commit}{', with changes' * bool(found.get('dirty'))}"),
        ("device", str(found["device"])),
        ("versions", ", ".join(f"{name} {number}" for name, number in sorted(found["versions"].items()))),
        ("command", str(found.get("command", DASH))),
    ]
    return grid(("", ""), [(name, " ".join(text.split())) for name, text in rows])


def _licence(config: dict[str, Any], model: str) -> str:
    if config["model"] == EMBEDDED:
        return f"The weights are under the licence of sdpo-bench, MIT. {SPRITES}"
    where = f": see [{model}](https://huggingface.co/{model})" if _is_on_hub(config) else ""
    return f"The licence of the base model applies{where}."
