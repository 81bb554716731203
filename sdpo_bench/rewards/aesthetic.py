"""LAION's aesthetic predictor (github.com/christophschuhmann/improved-aesthetic-predictor)."""

from __future__ import annotations

from torch import Tensor

from sdpo_bench.rewards._clip import CLIP_L, VIT_L, CLIPReward
from sdpo_bench.rewards._weights import Source

FILE = "sac+logos+ava1-l14-linearMSE.pth"


class Aesthetic(CLIPReward):
    """How much people would like an image, independent of its prompt: five linear layers on the image's CLIP embedding,
    scaled to length 1."""

    name = "aesthetic"
    title = "Aesthetic"
    licence = "Apache-2.0 (head), MIT (CLIP)"
    scale = "ratings, about 1..10"
    sources = (
        Source(
            "christophschuhmann/improved-aesthetic-predictor",
            "6934dd81792f086e613a121dbce43082cb8be85e",
            {FILE: "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"},
            host="github",
        ),
        CLIP_L,
    )
    towers = VIT_L

    def load(self) -> None:
        own, clip = self.sources
        self.mlp = self.head(self.tensors(own, FILE))
        self.model = self.load_clip(self.tensors(clip, "model.safetensors"))
        self.model.text_model = None  # a quarter of the memory, and never asked

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self.mlp(self.embed_pictures(pixels))[:, 0]
