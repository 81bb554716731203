"""The text of the embedded model's card; the measured part is added by `quality`."""

CARD = """\
---
license: other
license_name: mixed
library_name: diffusers
pipeline_tag: text-to-image
---

# Few-step animals: the embedded model of sdpo_bench

A tiny text-to-image model for studying RL finetuning where no GPU and no download is at hand: an ordinary
`StableDiffusionPipeline` (AutoencoderKL, CLIPTextModel, UNet2DConditionModel, SD-Turbo's EulerDiscreteScheduler)
that draws 32 px emoji-like pictures of 45 animals in 1 to 8 steps, without guidance.

- **Use**: `StableDiffusionPipeline.from_pretrained(folder)`; prompts are the plain names in
  `sdpo_bench/assets/prompts.txt`. Other text is encoded but means nothing to the model. Sample without classifier-
  free guidance (guidance scale 1).
- **Data**: 228 emoji of Noto (Apache-2.0), Fluent 3D and Fluent flat (MIT, Microsoft) and Twemoji (CC-BY 4.0,
  Twitter, Inc. and other contributors), over plain light backgrounds; sources, versions and licence texts in
  `sdpo_bench/testbed/sprites/`. Credit these sets when you share pictures made by the model. The code is under the
  repository's licence.
- **Training**: `python -m sdpo_bench.testbed.build`, from the repository alone, on two CPU cores. An autoencoder (f
  = 4); then a v-prediction denoiser, trained together with the text encoder to jump from any noised state to the
  endpoint of the probability-flow ODE, whose score has a closed form on a finite set of latents. No teacher
  network. See `docs/testbed.md`.
- **Limits**: a few latents a class, so the model varies little within a view; pictures are small and soft; it says
  nothing about photographs. It is a test bed for comparing methods, not an image generator.

"""
