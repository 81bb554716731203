"""Common parts of all rewards."""

from __future__ import annotations

import contextlib
import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.rewards._gradient import score_in_parts
from sdpo_bench.rewards._pixels import preprocess, to_levels, to_uint8
from sdpo_bench.rewards._spec import Term
from sdpo_bench.rewards._weights import MissingWeights, Source, build, mlp, mlp_of, read

__all__ = ["Pretrained", "Reward", "WeightedSum", "score_in_parts", "to_levels", "to_uint8"]

HALF_SCALE = 2.0**10
"""Scale of gradients within a float16 network. Unscaled, many of a score's gradients by one of 150,000 pixels are below
6e-5, where float16 loses digits: CLIPs of the published depths gave gradients wrong by 1 to 2 %, scaled by 0.3 %."""


class Reward:
    """See the package's docstring."""

    name: str
    title: str
    licence: str
    revision: str
    scale: str
    optimisable: ClassVar[bool] = True
    """False for what is only measured, of several pictures together."""
    differentiable: bool = False
    """Whether `differentiable_score` has a gradient."""
    needs_start: bool = False
    """Whether it compares with the pictures of the pretrained model, which an evaluation then samples too."""

    needs: ClassVar[str] = ""
    """Needs besides the package and weights, in words: a server, a library."""

    @property
    def weights_sha256(self) -> dict[str, str]:
        """SHA-256 of every file of weights that was read, by repository/file; empty for computed rewards."""
        return {}

    def check_prompts(self, prompts: list[str]) -> None:
        """Raises UserError before a run begins, for prompts that this reward cannot score. By default it can."""

    @classmethod
    def check_noises(cls, last: int, interim: int) -> None:
        """Raises UserError for numbers of pictures of a prompt, in the last evaluation and in those before, that it
        can't be measured with; by default it can."""

    def against(self, start: Tensor) -> Reward:
        """With `needs_start`: this measure beside `start`, the pretrained model's pictures [N, 3, H, W] of the prompts
        and noises that it is called with next."""
        raise NotImplementedError

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise NotImplementedError

    def differentiable_score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The value of a call, with a gradient by the pictures: here the call's own, for a reward that says that it is
        `differentiable`. UserError for others."""
        if not self.differentiable:
            raise UserError(f"reward {self.name} has no gradient")
        return self(images, prompts)


class Pretrained(Reward):
    """A published network. Its weights are found or fetched, and read, when it is constructed.

    A subclass gives `sources` (the first one holds the reward's own weights), `load` and `score`. If the published
    scale differs from the score that SDPO's code optimises, it also gives `published_scale` and `publish`.
    """

    differentiable = True
    sources: tuple[Source, ...]
    published_scale: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "sources" in vars(cls):
            cls.revision = ", ".join(f"{source.repo}@{source.revision}" for source in cls.sources)

    def __init__(
        self,
        *,
        published: bool = False,
        revision: str = "",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> None:
        """`dtype` is that of the networks; heads and cosines are always float32. `batch_size` limits memory; on a CPU
        it may change the last digit of a score. UserError for what is not available here."""
        if dtype not in (torch.float16, torch.float32):
            raise UserError(f"reward {self.name}: {dtype} is not supported; expected torch.float16 or torch.float32")
        if batch_size < 1:
            raise UserError(f"reward {self.name}: batch size {batch_size}; expected at least 1")
        self.device, self.dtype, self.batch_size = torch.device(device), dtype, batch_size
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"reward {self.name}: torch finds no CUDA device here; use cpu")
        if revision:  # its digests are not known
            own, *others = self.sources
            self.sources = (replace(own, revision=revision, sha256={}), *others)
        self.revision = ", ".join(map(str, self.sources))
        self.published = published and bool(self.published_scale)
        self.name = Term(self.name, revision=revision, published=published).label
        if self.published:
            self.title, self.scale = f"{self.title} (published scale)", self.published_scale
        self._sha256: dict[str, str] = {}
        try:
            self.load()
        except UserError as error:
            raise type(error)(f"reward {self.name}: {error}") from error

    @property
    def weights_sha256(self) -> dict[str, str]:
        return dict(self._sha256)

    def load(self) -> None:
        """Reads the weights, with `tensors`, `network` and `head`."""
        raise NotImplementedError

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Scores [n] of preprocessed images [n, 3, 224, 224] in the networks' dtype, on the device, n <= batch_size.
        Each score depends only on its own image, and has a gradient if the image has one."""
        raise NotImplementedError

    def publish(self, score: Tensor) -> Tensor:
        """The score [N] on the published scale."""
        return score

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.differentiable_score(images, prompts)

    def differentiable_score(self, images: Tensor, prompts: list[str]) -> Tensor:
        def score(pictures: Tensor, prompts: list[str]) -> Tensor:
            return self.score(preprocess(pictures.to(self.device)).to(self.dtype), prompts).float().cpu()

        scale = HALF_SCALE if self.dtype == torch.float16 else 1.0
        found = score_in_parts(score, images, prompts, self.batch_size, scale)
        return self.publish(found) if self.published else found

    def tensors(self, source: Source, name: str) -> dict[str, Tensor]:
        state, self._sha256[f"{source.repo}/{name}"] = read(source, name)
        return state

    def network(self, cls: Any, config: Any, state: dict[str, Tensor], **options: Any) -> Any:
        return build(cls, config, state, device=self.device, dtype=self.dtype, **options)

    def head(self, state: dict[str, Tensor]) -> torch.nn.Sequential:
        return mlp(state, self.device)

    @classmethod
    def files_only(cls) -> type[Pretrained]:
        """This class, reduced to finding or fetching its files."""

        class Files(cls):  # type: ignore[valid-type,misc]
            def tensors(self, source: Source, name: str) -> dict[str, Tensor]:
                source.file(name)
                return {}

            def network(self, *_: Any, **__: Any) -> Any:
                return torch.nn.Module()

            def head(self, *_: Any) -> Any:
                return torch.nn.Sequential()

        return Files

    @classmethod
    @functools.cache
    def network_bytes(cls, dtype: torch.dtype) -> int:
        """Bytes of its networks, which are made on the meta device: no file is read."""

        networks: list[Any] = []

        class NoFile:
            def file(self, name: str) -> Path:
                raise MissingWeights(name)

        class Sizes(cls):  # type: ignore[valid-type,misc]
            def __init__(self) -> None:
                self.sources = tuple(NoFile() for _ in cls.sources)
                with contextlib.suppress(MissingWeights), torch.device("meta"):  # a tokenizer's, after the networks
                    self.load()

            def tensors(self, *_: Any) -> dict[str, Tensor]:
                return {}

            def network(self, cls: Any, config: Any, state: Any, **options: Any) -> Any:
                networks.append(cls(config, **options).to(dtype))
                return networks[-1]

            def head(self, *_: Any) -> Any:
                networks.append(mlp_of(768))
                return networks[-1]

        Sizes()
        return sum(p.numel() * p.itemsize for network in networks for p in network.parameters())


class WeightedSum(Reward):
    """A weighted sum of rewards; NaN if one of them is NaN."""

    def __init__(self, terms: list[tuple[Term, Reward]]) -> None:
        self.terms = [(term.weight, reward) for term, reward in terms]
        rewards = [reward for _, reward in terms]
        self.name = "+".join(str(term) for term, _ in terms)
        self.title = " + ".join(f"{weight:g} {reward.title}" for weight, reward in self.terms)
        self.licence = "; ".join(dict.fromkeys(reward.licence for reward in rewards))
        self.revision = "; ".join(reward.revision for reward in rewards)
        self.scale = "weighted sum of: " + "; ".join(f"{reward.title}, {reward.scale}" for reward in rewards)
        self.differentiable = all(reward.differentiable for reward in rewards)
        self.needs_start = any(reward.needs_start for reward in rewards)

    @property
    def weights_sha256(self) -> dict[str, str]:
        return {key: value for _, reward in self.terms for key, value in reward.weights_sha256.items()}

    def check_prompts(self, prompts: list[str]) -> None:
        for _, reward in self.terms:
            reward.check_prompts(prompts)

    def against(self, start: Tensor) -> WeightedSum:
        other = copy.copy(self)
        other.terms = [(w, reward.against(start) if reward.needs_start else reward) for w, reward in self.terms]
        return other

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        # A copy for each: what one reward does to its pictures must not reach the next.
        return torch.stack([weight * reward(images.clone(), prompts) for weight, reward in self.terms]).sum(0)

    def differentiable_score(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = [weight * reward.differentiable_score(images.clone(), prompts) for weight, reward in self.terms]
        return torch.stack(scores).sum(0)
