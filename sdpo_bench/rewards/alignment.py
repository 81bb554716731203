"""How well an image shows its prompt, by the embedded model's image-text scorers (docs/testbed.md)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.rewards.base import Reward, score_in_parts
from sdpo_bench.rewards.scorer import CHUNK, Scorer

SCORERS = Path(__file__).parent.parent / "assets" / "scorers"


class Alignment(Reward):
    """Cosine similarity of image and prompt, in place of the learned rewards of the paper."""

    name = "alignment"
    title = "Alignment"
    licence = "MIT (weights trained on the committed sprites)"
    revision = "1"
    scale = "cosine, -1..1"
    differentiable = True
    folder: ClassVar[str] = "alignment"

    def __init__(self) -> None:
        folder = SCORERS / self.folder
        if not folder.is_dir():
            raise UserError(f"reward {self.name}: {folder} does not exist; reinstall the package or run nox -s testbed")
        self.scorer = Scorer.load(folder).requires_grad_(False).eval()

    def check_prompts(self, prompts: list[str]) -> None:
        if unknown := sorted(set(prompts) - set(self.scorer.prompts)):
            raise UserError(
                f"reward {self.name} knows only its {len(self.scorer.prompts)} animals, not {unknown[:3]}; give other "
                f"rewards (of train: --reward and --eval-rewards; of evaluate: --rewards), or other prompts"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.scorer.score(images.float().cpu(), prompts).float()

    def differentiable_score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return score_in_parts(self.scorer.score, images.float().cpu(), prompts, CHUNK)


class AlignmentHeldout(Alignment):
    """A second scorer of another architecture and seed that no run optimises. If it does not rise with `alignment`, the
    reward is being hacked. So it gives no gradient that a run could learn from."""

    name = "alignment_heldout"
    title = "Alignment (held-out scorer)"
    differentiable = False
    folder = "alignment_heldout"

    differentiable_score = Reward.differentiable_score
