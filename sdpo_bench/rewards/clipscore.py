"""CLIPScore (Hessel et al., arXiv 2104.08718), with CLIP ViT-L/14."""

from __future__ import annotations

from torch import Tensor

from sdpo_bench.rewards._clip import CLIP_L, VIT_L, CLIPReward


class CLIPScore(CLIPReward):
    """How well image and prompt fit. The paper's scale is 2.5 max(cosine, 0), with ViT-B/32; torchmetrics' is 100
    max(cosine, 0)."""

    name = "clipscore"
    title = "CLIPScore"
    licence = "MIT (CLIP)"
    scale = "cosine, -1..1"
    published_scale = "2.5 max(cosine, 0), 0..2.5"
    sources = (CLIP_L,)
    towers = VIT_L

    def load(self) -> None:
        (clip,) = self.sources
        self.model, self.tokenizer = self.load_clip(self.tensors(clip, "model.safetensors")), self.load_tokenizer(clip)

    def publish(self, score: Tensor) -> Tensor:
        return 2.5 * score.clamp(min=0)
