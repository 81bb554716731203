"""HPSv2 (Wu et al., "Human Preference Score v2", arXiv 2306.09341): CLIP ViT-H/14, tuned to people's choices."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sdpo_bench.rewards._clip import CLIP_H, VIT_H, CLIPReward
from sdpo_bench.rewards._weights import Source

NAMES = {  # how names begin in OpenCLIP, and in transformers
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
LAYER_NAMES = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's weights under transformers' names: projections transposed; queries, keys and values separated."""
    out = {}
    for key, value in state.items():
        new = next((to + key.removeprefix(of) for of, to in NAMES.items() if key.startswith(of)), key)
        for of, to in LAYER_NAMES.items():
            new = new.replace(of, to)
        layer, in_proj, kind = new.partition(".attn.in_proj_")
        if in_proj:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                out[f"{layer}.self_attn.{part}_proj.{kind}"] = rows
        else:
            out[new] = value.T if new in ("visual_projection.weight", "text_projection.weight") else value
    return out


class HPSv2(CLIPReward):
    """How people would rate an image of a prompt. Scores are comparable between images of the same prompt, and not
    between versions."""

    name = "hpsv2"
    title = "HPSv2"
    licence = "Apache-2.0"
    scale = "cosine, -1..1"
    sources = (Source("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a"), CLIP_H)
    towers = VIT_H
    file: ClassVar[str] = "HPS_v2_compressed.pt"

    def load(self) -> None:
        own, clip = self.sources
        self.model, self.tokenizer = self.load_clip(renamed(self.tensors(own, self.file))), self.load_tokenizer(clip)


class HPSv21(HPSv2):
    """Version 2.1, trained on better data."""

    name = "hpsv2.1"
    title = "HPSv2.1"
    file = "HPS_v2.1_compressed.pt"
    sources = (
        Source(
            "xswu/HPSv2",
            "697403c78157020a1ae59d23f111aa58ced35b0a",
            {file: "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"},
        ),
        CLIP_H,
    )
