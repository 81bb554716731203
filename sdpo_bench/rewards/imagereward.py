"""ImageReward (Xu et al., arXiv 2304.05977): BLIP (arXiv 2201.12086), tuned to people's ratings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.rewards._weights import Source
from sdpo_bench.rewards.base import Pretrained

FILE = "ImageReward.pt"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of scores on the authors' data
VISION: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
TEXT: dict[str, Any] = {  # BERT base with cross-attention; 12 heads, where transformers' default for BLIP is 8
    "vocab_size": 30524,
    "max_position_embeddings": 512,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "encoder_hidden_size": 1024,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "is_decoder": True,
}
LENGTH = 35
UNUSED = ("blip.vision_proj.", "blip.text_proj.")  # of BLIP's contrastive loss
VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}


def renamed(key: str) -> str:
    """The name in transformers of a weight in BLIP's image network. (The names of the text network are the same.)"""
    for of, to in VISION_NAMES.items():
        key = key.replace(of, to)
    return f"post_layernorm.{key.removeprefix('norm.')}" if key.startswith("norm.") else key


class ImageReward(Pretrained):
    """How people would rate an image of a prompt. The published scale is the score minus its mean, divided by its
    deviation."""

    name = "imagereward"
    title = "ImageReward"
    licence = "Apache-2.0 (BLIP: BSD-3-Clause)"
    sources = (
        Source(
            "THUDM/ImageReward",
            "5736be03b2652728fb87788c9797b0570450ab72",
            {FILE: "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6"},
        ),
        Source("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"),
    )
    scale = "raw, about -2..2"
    published_scale = "standardised, about -2..2"

    def load(self) -> None:
        from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        own, bert = self.sources
        parts: dict[str, dict[str, Tensor]] = {"blip.visual_encoder.": {}, "blip.text_encoder.": {}, "mlp.": {}}
        for key, value in self.tensors(own, FILE).items():
            prefix = next((prefix for prefix in parts if key.startswith(prefix)), "")
            if prefix:
                parts[prefix][key.removeprefix(prefix)] = value
            elif not key.startswith(UNUSED):
                raise UserError(f"the weights are of another model: ImageReward has no tensor {key}")
        vision, text, head = parts.values()
        vision = {renamed(key): value for key, value in vision.items()}
        self.vision = self.network(BlipVisionModel, BlipVisionConfig(**VISION), vision)
        self.text = self.network(BlipTextModel, BlipTextConfig(**TEXT), text, add_pooling_layer=False)
        self.mlp = self.head(head)
        self.tokenizer = BertTokenizer.from_pretrained(bert.file("vocab.txt").parent)
        self.tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(self.device)
        patches = self.vision(pixel_values=pixels).last_hidden_state
        hidden = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=self.device),
            is_decoder=False,  # the configuration says True for its cross-attention, but each word sees all others
        ).last_hidden_state
        return self.mlp(hidden[:, 0].float())[:, 0]

    def publish(self, score: Tensor) -> Tensor:
        return (score - MEAN) / STD
