"""Measure a built model on held-out augmentations and generated pictures; write quality.json, README.md, grid.png."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from sdpo_bench.records.provenance import code_version, device_name, versions
from sdpo_bench.rewards.scorer import IMAGE_SIZE, Scorer
from sdpo_bench.testbed.animals import ANIMALS
from sdpo_bench.testbed.card import CARD
from sdpo_bench.testbed.data import MEDIUM, MILD, WIDE, random_pictures
from sdpo_bench.testbed.model import LATENTS, decode, sample
from sdpo_bench.testbed.train_autoencoder import encode, psnr
from sdpo_bench.testbed.train_scorer import accuracy, blur

HELD_OUT_SEED = 90_001  # no training stage draws its augmentations from this seed
STEP_COUNTS = (1, 2, 4, 8)
TARGETS = {"psnr_db": 28.0, "accuracy": 0.85}


def _milliseconds(call: Callable[[], object], count: int) -> float:
    """Milliseconds per item of `call`, which handles `count` items: the best of five."""
    call()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return round(min(seconds) / count * 1e3, 3)


def grid(images: dict[int, Tensor]) -> Image.Image:
    """Picture of all prompts: blocks of 15 columns, a row per step count; images[K] is [45, 3, 32, 32] in [0, 1]."""
    side, margin, columns, label = 2 * IMAGE_SIZE, 4, 15, 14
    cell = side + margin
    block = label + len(images) * cell + margin
    rows = -(-len(ANIMALS) // columns)
    sheet = Image.new("RGB", (60 + columns * cell, rows * block), "white")
    draw = ImageDraw.Draw(sheet)
    for i, animal in enumerate(ANIMALS):
        left, top = 60 + (i % columns) * cell, (i // columns) * block
        draw.text((left + 2, top), animal, fill="black")
        for row, (steps, batch) in enumerate(images.items()):
            pixels = (batch[i].permute(1, 2, 0) * 255).round().byte().numpy()
            picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top + label + row * cell))
            if i % columns == 0:
                draw.text(
                    (2, top + label + row * cell + side // 2 - 6),
                    f"{steps} step{'s' * (steps > 1)}",
                    fill="black",
                )
    return sheet


@torch.no_grad()
def measure(out: Path, real_pictures: int, per_prompt: int, settings: dict[str, int]) -> dict[str, object]:
    """Measure the model in `out`, write `out/quality/` and return the record."""
    pipeline = StableDiffusionPipeline.from_pretrained(out / "embedded_model")
    vae = pipeline.vae
    if not isinstance(vae, AutoencoderKL):
        raise TypeError(f"expected AutoencoderKL, found {type(vae).__name__}")
    scorers = {name: Scorer.load(out / "scorers" / name) for name in ("alignment", "alignment_heldout")}
    held_out = scorers["alignment_heldout"]

    def judge(images: Tensor, classes: Tensor) -> dict[str, float]:
        row = {"accuracy": (held_out.rank(images).argmax(1) == classes).float().mean().item()}
        prompts = [ANIMALS[i] for i in classes.tolist()]
        row |= {name: scorer.score(images, prompts).mean().item() for name, scorer in scorers.items()}
        return {key: round(value, 4) for key, value in row.items()}

    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    real, classes = random_pictures(real_pictures, generator, WIDE)
    mild, mild_classes = random_pictures(real_pictures, generator, MILD)
    width = torch.full((len(mild),), 1.5)
    pictures = {
        "real, wide augmentation": judge(real, classes),
        "real, mild augmentation": judge(mild, mild_classes),
        "the same, blurred by 1.5 px": judge(blur(mild, width), mild_classes),
        "the same, through the autoencoder": judge(decode(vae, encode(vae, mild)), mild_classes),
    }
    targets = torch.arange(len(ANIMALS)).repeat(per_prompt)
    prompts = [ANIMALS[i] for i in targets.tolist()]
    generated, shown = {}, {}
    for steps in STEP_COUNTS:
        images = sample(pipeline, prompts, steps, torch.Generator().manual_seed(HELD_OUT_SEED + 1))
        generated[str(steps)] = judge(images, targets)
        shown[steps] = images[: len(ANIMALS)]
    context, x = torch.zeros(64, 8, pipeline.unet.config.cross_attention_dim), torch.zeros(64, *LATENTS)
    ms = {
        "denoiser, per latent": _milliseconds(lambda: pipeline.unet(x, 499, context), 64),
        "decoder, per image": _milliseconds(lambda: vae.decode(x), 64),
        **{f"{n}, per image": _milliseconds(partial(s.rank, mild[:64]), 64) for n, s in scorers.items()},
    }
    seconds = {p.stem: json.loads(p.read_text())["seconds"] for p in sorted((out / "done").glob("*.json"))}
    record: dict[str, object] = {
        "schema": 1,
        "autoencoder": {
            "psnr_db": round(psnr(vae, real_pictures, HELD_OUT_SEED + 2), 3),
            "pictures": real_pictures,
            "augmentation": vars(MEDIUM),
            "scaling_factor": vae.config.scaling_factor,
        },
        "classifier": {
            "name": "alignment_heldout, nearest of the 45 prompts",
            "pictures": real_pictures,
            "accuracy": round(accuracy(held_out, real_pictures, HELD_OUT_SEED + 3, WIDE), 4),
        },
        "pictures": pictures,
        "generated": {"sampler": "DDIM, eta 1, trailing", "images": len(targets), "steps": generated},
        "targets": TARGETS,
        "weights": {
            n: sum(p.numel() for p in getattr(pipeline, n).parameters()) for n in ("unet", "vae", "text_encoder")
        },
        "bytes": sum(f.stat().st_size for f in (out / "embedded_model").rglob("*.*") if f.suffix != ".md"),
        "milliseconds": ms,
        "build": {"settings": settings, "seconds": seconds},
        "provenance": {**code_version(), "versions": versions(), "device": device_name("cpu"), "threads": 1},
    }
    folder = out / "quality"
    folder.mkdir(exist_ok=True)
    (folder / "quality.json").write_text(json.dumps(record, indent=1) + "\n")
    table = _table(record, pictures, generated, ms, seconds)
    (folder / "README.md").write_text("# The embedded model, as measured\n\n" + table)
    (out / "embedded_model" / "README.md").write_text(CARD + "## Measured quality\n\n" + table)
    grid(shown).save(folder / "grid.png", optimize=True)
    return record


def _table(
    record: dict,
    pictures: dict[str, dict],
    generated: dict[str, dict],
    ms: dict[str, float],
    seconds: dict[str, float],
) -> str:
    rows = [
        "Written by `python -m sdpo_bench.testbed.build`; the record and a grid of pictures are `quality.json` and "
        "`grid.png` in `results/testbed`.",
        "",
        f"Autoencoder: PSNR {record['autoencoder']['psnr_db']:.2f} dB on {record['autoencoder']['pictures']} held-out "
        f"augmentations (target {TARGETS['psnr_db']:.0f}). Held-out classifier on real pictures: accuracy "
        f"{record['classifier']['accuracy']:.3f}. Model folder: {record['bytes'] / 1e6:.1f} MB.",
        "",
        "Accuracy is that of the held-out scorer's nearest prompt "
        f"(target {TARGETS['accuracy']} at every step count); the other columns are mean scores.",
        "",
        "| pictures | accuracy | alignment | alignment_heldout |",
        "|---|---|---|---|",
    ]
    named = {**pictures, **{f"generated, {k} step{'s' * (k != '1')}": v for k, v in generated.items()}}
    for name, row in named.items():
        rows.append(f"| {name} | {row['accuracy']:.3f} | {row['alignment']:.3f} | {row['alignment_heldout']:.3f} |")
    rows += ["", "| | ms, one thread |", "|---|---|", *(f"| {k} | {v} |" for k, v in ms.items())]
    rows += ["", "| stage | seconds |", "|---|---|", *(f"| {k} | {v} |" for k, v in seconds.items())]
    rows += [
        "",
        "The two scorers are trained one after the other, beside the autoencoder; the denoiser in two processes.",
    ]
    where = record["provenance"]
    code = (where["commit"] or "no commit") + (", with changes" if where["dirty"] else "")
    libraries = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    rows += ["", f"Code: {code}. Device: {where['device']}, one thread a process. Versions: {libraries}.", ""]
    return "\n".join(rows)
