"""The published networks written down anew from their papers, under the names that their files use: what our loading,
renaming and configurations are compared with. Plain PyTorch; nothing here knows transformers or the package."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Weights under which every layer matters: signals keep about their size all the way through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            last = name.rpartition(".")[2]
            if value.ndim == 0:
                value.fill_(1.5)
            elif value.ndim == 1 and last == "weight":  # of a normalisation
                value.copy_(1 + 0.1 * noise)
            elif value.ndim == 1:
                value.copy_(0.1 * noise)
            elif "embedding" in name or last in ("cls_token", "pos_embed"):
                value.copy_(0.5 * noise)
            else:
                value.copy_(noise * (value[0].numel() if last == "weight" else len(value)) ** -0.5)
    return model.requires_grad_(False).eval()


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention [n, t, d] as in "Attention is all you need"; mask [..., t, s] is added to the logits."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.mT * q.shape[-1] ** -0.5
    return (logits if mask is None else logits + mask).softmax(-1).matmul(v).transpose(1, 2).flatten(2)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


# OpenCLIP


class Block(nn.Module):
    def __init__(self, width: int, heads: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", activation())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, projection: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + 16 * 16, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, activation)
        self.proj = nn.Parameter(torch.zeros(width, projection))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class CLIP(nn.Module):
    """OpenCLIP's model: each tower (width, layers, heads)."""

    def __init__(
        self,
        text: tuple[int, int, int],
        vision: tuple[int, int, int],
        projection: int,
        activation: type[nn.Module],
        vocabulary: int = 49408,
    ) -> None:
        super().__init__()
        self.visual = Visual(*vision, projection, activation)
        self.token_embedding = nn.Embedding(vocabulary, text[0])
        self.positional_embedding = nn.Parameter(torch.zeros(77, text[0]))
        self.transformer = Transformer(*text, activation)
        self.ln_final = nn.LayerNorm(text[0])
        self.text_projection = nn.Parameter(torch.zeros(text[0], projection))
        self.logit_scale = nn.Parameter(torch.zeros([]))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [n, 77], the end of the text having the highest, zeros after it."""
        causal = self.positional_embedding.new_full((77, 77), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(tokens) + self.positional_embedding, causal))
        return x[torch.arange(len(x)), tokens.argmax(1)] @ self.text_projection

    def cosine(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return F.cosine_similarity(self.visual(pixels), self.encode_text(tokens))


# BLIP and ImageReward


def module(**parts: nn.Module) -> nn.Module:
    out = nn.Module()
    for name, part in parts.items():
        out.add_module(name, part)
    return out


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = module(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        self.mlp = module(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn.proj(attention(*self.attn.qkv(self.norm1(x)).chunk(3, -1), self.heads))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.patch_embed = module(proj=nn.Conv2d(3, width, 16, 16))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + 14 * 14, width))
        self.blocks = nn.ModuleList(ViTBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed.proj(pixels).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class BertAttention(nn.Module):
    def __init__(self, width: int, heads: int, source: int) -> None:
        super().__init__()
        self.heads = heads
        self.self = module(query=nn.Linear(width, width), key=nn.Linear(source, width), value=nn.Linear(source, width))
        self.output = module(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        y = attention(self.self.query(x), self.self.key(source), self.self.value(source), self.heads, mask)
        return self.output.LayerNorm(x + self.output.dense(y))


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int, source: int) -> None:
        super().__init__()
        self.attention = BertAttention(width, heads, width)
        self.crossattention = BertAttention(width, heads, source)
        self.intermediate = module(dense=nn.Linear(width, 4 * width))
        self.output = module(dense=nn.Linear(4 * width, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))

    def forward(self, x: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x, mask), patches)
        return self.output.LayerNorm(x + self.output.dense(F.gelu(self.intermediate.dense(x))))


class Bert(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, source: int, vocabulary: int) -> None:
        super().__init__()
        self.embeddings = module(
            word_embeddings=nn.Embedding(vocabulary, width),
            position_embeddings=nn.Embedding(512, width),
            LayerNorm=nn.LayerNorm(width, eps=1e-12),
        )
        self.embeddings.register_buffer("position_ids", torch.arange(512)[None])  # old files hold it
        self.encoder = module(layer=nn.ModuleList(BertLayer(width, heads, source) for _ in range(layers)))

    def forward(self, tokens: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        e = self.embeddings
        x = e.LayerNorm(e.word_embeddings(tokens) + e.position_embeddings.weight[: tokens.shape[1]])
        added = torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[:, None, None]
        for layer in self.encoder.layer:
            x = layer(x, added, patches)
        return x


def head(width: int) -> nn.Module:
    """The five linear layers of Aesthetic and ImageReward."""
    widths = (width, 1024, 128, 64, 16, 1)
    linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return module(
        layers=nn.Sequential(
            linear[0],
            nn.Dropout(0.2),
            linear[1],
            nn.Dropout(0.2),
            linear[2],
            nn.Dropout(0.1),
            linear[3],
            linear[4],
        )
    )


class ImageReward(nn.Module):
    """Each network (width, layers, heads)."""

    def __init__(self, text: tuple[int, int, int], vision: tuple[int, int, int], vocabulary: int = 30524) -> None:
        super().__init__()
        self.blip = module(
            visual_encoder=ViT(*vision),
            text_encoder=Bert(*text, source=vision[0], vocabulary=vocabulary),
            vision_proj=nn.Linear(vision[0], 256),
            text_proj=nn.Linear(text[0], 256),
        )
        self.mlp = head(text[0])

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        hidden = self.blip.text_encoder(tokens, mask, self.blip.visual_encoder(pixels))
        return self.mlp.layers(hidden[:, 0])[:, 0]
