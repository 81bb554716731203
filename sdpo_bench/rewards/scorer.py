"""Two small image-text scorers over the prompts of the testbed: mini-CLIPs, trained from different seeds on different
augmentations, with different image encoders. Runs may optimise `alignment`; nothing ever optimises `alignment_heldout`.

The text side is a learnt table with one embedding per known prompt: a prompt outside it raises `UnknownPromptError`
instead of being scored by guesswork.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdpo_bench.records.files import share
from sdpo_bench.rewards._gradient import StraightThrough

IMAGE_SIZE = 32  # pixels: the height and width of what a scorer sees, and of the embedded model's pictures
EMBEDDING = 64
CHUNK = 64
"""Pictures scored at a time. On a CPU more take twice as long each: their activations don't fit into its cache."""


class UnknownPromptError(ValueError):
    """The scorer was not trained on this prompt."""


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class ConvEncoder(nn.Sequential):
    """Plain convolutional encoder, [N, 3, 32, 32] -> [N, EMBEDDING]."""

    def __init__(self) -> None:
        super().__init__(
            _conv(3, 24),
            _conv(24, 48, 2),
            _conv(48, 48),
            _conv(48, 96, 2),
            _conv(96, 96),
            _conv(96, 128, 2),
            nn.Conv2d(128, 128, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, EMBEDDING),
        )


class TransformerEncoder(nn.Module):
    """Small vision transformer on 8 x 8 patches of 4 pixels, [N, 3, 32, 32] -> [N, EMBEDDING]."""

    def __init__(self, width: int = 80, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, width, 3, 2, 1))
        self.position = nn.Parameter(0.02 * torch.randn((IMAGE_SIZE // 4) ** 2, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, EMBEDDING)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))


ENCODERS: dict[str, type[nn.Module]] = {"conv": ConvEncoder, "transformer": TransformerEncoder}


class Scorer(nn.Module):
    """Cosine similarity of an image and a prompt."""

    def __init__(self, encoder: str, prompts: Sequence[str]) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {encoder!r}; valid: {sorted(ENCODERS)}")
        self.encoder_name, self.prompts = encoder, tuple(prompts)
        self.encoder = ENCODERS[encoder]()
        self.text = nn.Embedding(len(self.prompts), EMBEDDING)

    def similarities(self, images: Tensor) -> Tensor:
        """Cosine similarity [N, number of prompts] of images [N, 3, 32, 32] in [0, 1] with every known prompt."""
        image = F.normalize(self.encoder(2 * images - 1), dim=-1)
        return image @ F.normalize(self.text.weight, dim=-1).T

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors [N, EMBEDDING], float32, of images [N, 3, H, W] in [0, 1], prepared as in `score`."""
        prepared = prepare(images.to(self.text.weight.device))
        return torch.cat([F.normalize(self.encoder(2 * chunk - 1), dim=-1) for chunk in prepared.split(CHUNK)])

    @torch.no_grad()
    def rank(self, images: Tensor) -> Tensor:
        """`similarities` of images that are prepared as in `score`: [N, number of prompts], float32."""
        return self._rank(images)

    def _rank(self, images: Tensor) -> Tensor:
        prepared = prepare(images.to(self.text.weight.device))
        return torch.cat([self.similarities(chunk) for chunk in prepared.split(CHUNK)])

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [N] (float32, cosines in [-1, 1]) of images [N, 3, H, W] in [0, 1] for their prompts; the images may
        have a gradient.

        Raises UnknownPromptError for a prompt outside `self.prompts`, ValueError for a wrong number of prompts.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
        index = {prompt: i for i, prompt in enumerate(self.prompts)}
        unknown = sorted(set(prompts) - set(index))
        if unknown:
            raise UnknownPromptError(f"unknown prompts {unknown}; this scorer knows: {', '.join(self.prompts)}")
        columns = torch.tensor([index[prompt] for prompt in prompts], device=self.text.weight.device)
        return self._rank(images).gather(1, columns[:, None])[:, 0].float()

    def save(self, folder: Path, **notes: object) -> None:
        """Writes `model.safetensors` and `config.json`; `notes` are kept in the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, str(folder / "model.safetensors"))
        config = {"encoder": self.encoder_name, "prompts": list(self.prompts), **notes}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        share(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The scorer saved in `folder`, in evaluation mode, float32, on the CPU."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text())
        scorer = cls(config["encoder"], config["prompts"])
        scorer.load_state_dict(load_file(str(folder / "model.safetensors")))
        return scorer.eval().requires_grad_(False)


def prepare(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] in [0, 1], any float type, in a scorer's format: [N, 3, 32, 32], float32, 8-bit levels.

    Larger images whose side is a multiple of 32 are averaged over areas; others are resized bicubically.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape [N, 3, H, W], not {list(images.shape)}")
    images = StraightThrough.apply(images.float().clamp(0, 1) * 255, torch.round) / 255
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if images.shape[-2:] == size:
        return images
    if all(side % IMAGE_SIZE == 0 for side in images.shape[-2:]):
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
