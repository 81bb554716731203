"""CLIP (arXiv 2103.00020): the cosine of the embeddings of an image and a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sdpo_bench.rewards._pixels import SIZE
from sdpo_bench.rewards._weights import Source
from sdpo_bench.rewards.base import Pretrained


@dataclass(frozen=True)
class Towers:
    """The networks for texts and for images, each (width, layers, heads). They are stated here, because published files
    that state them have been wrong: weights also fit with another number of heads or another activation, and then give
    nonsense scores."""

    text: tuple[int, int, int]
    vision: tuple[int, int, int]
    projection: int
    activation: str
    vocabulary: int = 49408
    length: int = 77

    def config(self) -> Any:
        """Transformers' CLIPConfig."""
        from transformers import CLIPConfig

        def tower(width: int, layers: int, heads: int) -> dict[str, Any]:
            return {
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": 4 * width,
                "hidden_act": self.activation,
                "layer_norm_eps": 1e-5,
                "projection_dim": self.projection,
            }

        start, end = self.vocabulary - 2, self.vocabulary - 1  # texts are embedded where they end
        tokens = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
        return CLIPConfig(
            text_config={
                **tower(*self.text),
                **tokens,
                "vocab_size": self.vocabulary,
                "max_position_embeddings": self.length,
            },
            vision_config={**tower(*self.vision), "image_size": SIZE, "patch_size": 14},
            projection_dim=self.projection,
        )


VIT_L = Towers(text=(768, 12, 12), vision=(1024, 24, 16), projection=768, activation="quick_gelu")  # OpenAI's
VIT_H = Towers(text=(1024, 24, 16), vision=(1280, 32, 16), projection=1024, activation="gelu")  # OpenCLIP's

CLIP_L = Source(
    "openai/clip-vit-large-patch14",
    "32bd64288804d66eefd0ccbe215aa642df71cc41",
    {"model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"},
)
CLIP_H = Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")  # its tokenizer


class CLIPReward(Pretrained):
    """Cosine of image and prompt, -1..1. A subclass's `load` sets `model` and `tokenizer`."""

    towers: Towers
    model: Any
    tokenizer: Any

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        unique = list(dict.fromkeys(prompts))  # a batch has few prompts, each of them often
        texts = self.embed_prompts(unique)[[unique.index(prompt) for prompt in prompts]]
        return (self.embed_pictures(pixels) * texts).sum(1)

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """[n, 3, 224, 224] to float32 [n, projection] of length 1."""
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=1)

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """n prompts, cut to the 77 tokens that CLIP reads, to float32 [n, projection] of length 1."""
        tokens = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.towers.length, return_tensors="pt"
        )
        return F.normalize(self.model.get_text_features(**tokens.to(self.device)).pooler_output.float(), dim=1)

    def load_clip(self, state: dict[str, Tensor]) -> Any:
        from transformers import CLIPModel

        return self.network(CLIPModel, self.towers.config(), state)

    def load_tokenizer(self, source: Source) -> Any:
        from transformers import CLIPTokenizer

        files = [source.file(name) for name in ("vocab.json", "merges.txt")]
        return CLIPTokenizer.from_pretrained(files[0].parent)
