"""PickScore (Kirstain et al., "Pick-a-Pic", arXiv 2305.01569): CLIP ViT-H/14, tuned to people's choices."""

from __future__ import annotations

from torch import Tensor

from sdpo_bench.rewards._clip import CLIP_H, VIT_H, CLIPReward
from sdpo_bench.rewards._weights import Source


class PickScore(CLIPReward):
    """Which of two images of a prompt people would pick. The published scale is the cosine times the learnt
    exp(logit_scale)."""

    name = "pickscore"
    title = "PickScore"
    licence = "MIT (code; the page of the weights names none)"
    scale = "cosine, -1..1"
    published_scale = "cosine times exp(logit_scale)"
    sources = (Source("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800"), CLIP_H)
    towers = VIT_H

    def load(self) -> None:
        own, clip = self.sources
        self.model, self.tokenizer = self.load_clip(self.tensors(own, "model.safetensors")), self.load_tokenizer(clip)

    def publish(self, score: Tensor) -> Tensor:
        return self.model.logit_scale.float().exp().cpu() * score
