"""OCR accuracy: text that PIL wrote is read, and compared with what the prompt has in quotes."""

from __future__ import annotations

import builtins
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from sdpo_bench.errors import UserError
from sdpo_bench.rewards import load_reward
from sdpo_bench.rewards.ocr import accuracy, wanted

pytest.importorskip("rapidocr", reason="the extra ocr is not installed")


def picture(*lines: str) -> torch.Tensor:
    """A white picture [3, 192, 192] with black lines of text."""
    image = Image.new("RGB", (192, 192), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((12, 40 + 50 * i), line, fill="black", font=ImageFont.load_default(26))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def test_what_is_written_is_read():
    reward = load_reward("ocr")
    images = torch.stack([picture("Open 24 hours"), picture("OPEN", "24 HOURS"), picture("Open 24 hours"), picture()])
    prompts = ['a sign "Open 24 hours"', "a sign “open 24 hours” at night", 'a sign "Open 27 hours"', 'a sign "Open"']
    assert reward(images, prompts).tolist() == pytest.approx([1, 1, 1 - 1 / 11, 0])
    assert reward.revision.startswith("rapidocr 3")
    assert len(reward.weights_sha256) >= 2  # one finds text, one reads it
    reward.check_prompts(prompts)
    with pytest.raises(UserError, match=r"^reward ocr: the prompt 'a \"\" sign' has no text in quotes"):
        reward.check_prompts(['a sign "OPEN"', 'a "" sign'])


@pytest.mark.parametrize(
    ("read", "target", "expected"),
    [
        ("open", "OP EN", 1),
        ("we are open now", "Open", 1),  # what else is in the picture does not count
        ("opem", "open", 0.75),
        ("pen", "open", 0.75),
        ("a long text of something else", "open", 0),
        ("", "open", 0),
    ],
)
def test_accuracy(read, target, expected):
    assert accuracy(read, target) == pytest.approx(expected)


def test_the_text_of_a_prompt():
    assert wanted('a "b c" and "d"') == "b c"
    assert wanted("it's a “b”") == "b"


def test_without_the_library(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "rapidocr":
            raise ModuleNotFoundError("No module named 'rapidocr'", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    message = "reward ocr: No module named 'rapidocr'; install it with: pip install 'sdpo-bench[ocr]'"
    with pytest.raises(UserError, match=re.escape(message)):
        load_reward("ocr")
