import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from sdpo_bench.rewards.scorer import Scorer
from sdpo_bench.testbed.animals import ANIMALS, ASSETS
from sdpo_bench.testbed.data import MILD, random_pictures
from sdpo_bench.testbed.model import sample, token_ids, trailing_timesteps
from sdpo_bench.testbed.train_autoencoder import encode

FOLDER = ASSETS / "embedded_model"
RESULTS = ASSETS.parent.parent / "results" / "testbed"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(FOLDER)


def test_the_folder_is_an_ordinary_pipeline(pipeline: StableDiffusionPipeline) -> None:
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert isinstance(pipeline.text_encoder, CLIPTextModel)
    assert isinstance(pipeline.scheduler, EulerDiscreteScheduler)
    assert pipeline.safety_checker is None
    assert pipeline.feature_extractor is None
    assert pipeline.vae.config.scaling_factor != 1
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 20_000_000
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".md", ".txt"}
    assert (FOLDER / "README.md").is_file()


def test_the_scheduler_is_sd_turbos_but_for_the_prediction(pipeline: StableDiffusionPipeline) -> None:
    config = DDIMScheduler.from_config(pipeline.scheduler.config).config
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert config.num_train_timesteps == 1000
    assert config.timestep_spacing == "trailing"
    assert config.prediction_type == "v_prediction"
    assert not config.set_alpha_to_one
    assert not config.clip_sample
    assert trailing_timesteps(4) == [999, 749, 499, 249]


def test_plain_diffusers_call_draws_pictures(pipeline: StableDiffusionPipeline) -> None:
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        ["cat", "whale"], num_inference_steps=2, guidance_scale=0.0, generator=torch.Generator().manual_seed(0)
    ).images
    assert [image.size for image in images] == [(32, 32)] * 2


def test_every_prompt_is_one_token_of_its_own(pipeline: StableDiffusionPipeline) -> None:
    assert isinstance(pipeline.tokenizer, CLIPTokenizer)
    ids = token_ids(pipeline.tokenizer, list(ANIMALS))
    assert len({tuple(row.tolist()) for row in ids}) == len(ANIMALS)
    end = pipeline.tokenizer.eos_token_id
    assert (ids[:, 0] == pipeline.tokenizer.bos_token_id).all()
    assert (ids[:, 1] != end).all()
    assert (ids[:, 2] == end).all()
    # The trap: a tokenizer built from file names alone knows two tokens and encodes everything alike.
    assert len(pipeline.tokenizer) > 600
    unknown = pipeline.tokenizer("axolotl").input_ids
    assert pipeline.tokenizer.decode(unknown, skip_special_tokens=True).strip() == "axolotl"


def test_latents_have_unit_scale_and_mean_zero(pipeline: StableDiffusionPipeline) -> None:
    latents = encode(pipeline.vae, random_pictures(256, torch.Generator().manual_seed(8), MILD)[0])
    assert latents.shape == (256, 4, 8, 8)
    assert abs(latents.std().item() - 1) < 0.1
    assert latents.mean((0, 2, 3)).abs().max() < 0.25


@pytest.mark.parametrize("steps", [1, 4])
def test_generated_animals_are_recognised(pipeline: StableDiffusionPipeline, steps: int) -> None:
    images = sample(pipeline, list(ANIMALS), steps, torch.Generator().manual_seed(5))
    again = sample(pipeline, list(ANIMALS), steps, torch.Generator().manual_seed(5))
    assert torch.equal(images, again)
    judge = Scorer.load(ASSETS / "scorers" / "alignment_heldout")
    assert (judge.rank(images).argmax(1) == torch.arange(45)).float().mean() > 0.7  # 45 pictures: well under 0.85


def test_the_committed_record_meets_the_targets() -> None:
    record = json.loads((RESULTS / "quality.json").read_text())
    assert record["autoencoder"]["psnr_db"] >= record["targets"]["psnr_db"] == 28
    assert record["classifier"]["accuracy"] >= 0.95
    assert set(record["generated"]["steps"]) == {"1", "2", "4", "8"}
    for row in record["generated"]["steps"].values():
        assert row["accuracy"] >= record["targets"]["accuracy"] == 0.85
        # Headroom for finetuning: generated pictures score below real ones.
        assert row["alignment"] < record["pictures"]["real, mild augmentation"]["alignment"]
    assert record["bytes"] <= 20_000_000
    assert (RESULTS / "grid.png").is_file()
