"""How well the text that a prompt asks for can be read in the picture (Flow-GRPO, arXiv 2505.05470, section 5.1)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.rewards.base import Reward, to_uint8

QUOTED = re.compile(r'"\s*([^"\s][^"]*)"|“\s*([^”\s][^”]*)”')


class OCR(Reward):
    """1 - the edit distance of the text that RapidOCR reads and the prompt's first text in quotes, over the latter's
    length; at least 0, and 1 where what is read contains it. Spaces and upper case do not count."""

    name = "ocr"
    title = "OCR accuracy"
    licence = "Apache-2.0 (RapidOCR and its PP-OCR models)"
    revision = "RapidOCR's"
    scale = "0..1"
    needs = "the extra ocr"

    def __init__(self) -> None:
        try:
            import rapidfuzz  # noqa: F401
            import rapidocr
        except ImportError as error:
            raise UserError(f"reward ocr: {error}; install it with: pip install 'sdpo-bench[ocr]'") from error
        self.revision = f"rapidocr {importlib.metadata.version('rapidocr')}"
        # As many threads as the rest of the process, not one for each core.
        options = {"EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads()}
        self.reader: Any = rapidocr.RapidOCR(params={"Global.log_level": "error", **options})
        self.models = sorted((Path(rapidocr.__file__).parent / "models").glob("*.onnx"))

    @property
    def weights_sha256(self) -> dict[str, str]:
        return {f"rapidocr/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in self.models}

    def check_prompts(self, prompts: list[str]) -> None:
        for prompt in prompts:
            wanted(prompt)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        pictures = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()[..., ::-1]  # BGR, as OpenCV has it
        texts = ["".join(self.reader(picture).txts or ()) for picture in pictures]
        return torch.tensor([accuracy(text, wanted(prompt)) for text, prompt in zip(texts, prompts, strict=True)])


def wanted(prompt: str) -> str:
    """The first text in quotes of a prompt. UserError if there is none."""
    if (found := QUOTED.search(prompt)) is None:
        raise UserError(f'reward ocr: the prompt {prompt!r} has no text in quotes; expected one such as: a sign "OPEN"')
    return found[1] or found[2]


def accuracy(read: str, target: str) -> float:
    from rapidfuzz.distance import Levenshtein

    read, target = ("".join(text.split()).lower() for text in (read, target))
    return 1.0 if target in read else max(1 - Levenshtein.distance(read, target) / len(target), 0.0)
