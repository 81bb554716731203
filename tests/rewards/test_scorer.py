from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from sdpo_bench.rewards.scorer import Scorer, UnknownPromptError, prepare
from sdpo_bench.testbed.animals import ANIMALS, ASSETS
from sdpo_bench.testbed.data import MILD, WIDE, random_pictures
from sdpo_bench.testbed.train_scorer import blur

NAMES = ("alignment", "alignment_heldout")


@pytest.fixture(params=NAMES)
def scorer(request: pytest.FixtureRequest) -> Scorer:
    return Scorer.load(ASSETS / "scorers" / request.param)


def test_right_prompt_scores_above_wrong(scorer: Scorer) -> None:
    images, classes = random_pictures(128, torch.Generator().manual_seed(6), WIDE)
    right = [ANIMALS[i] for i in classes.tolist()]
    wrong = [ANIMALS[(i + 7) % 45] for i in classes.tolist()]
    better = scorer.score(images, right) > scorer.score(images, wrong)
    assert better.float().mean() > 0.97


def test_damage_lowers_the_score(scorer: Scorer) -> None:
    images, classes = random_pictures(64, torch.Generator().manual_seed(7), MILD)
    prompts = [ANIMALS[i] for i in classes.tolist()]
    means = [
        scorer.score(x, prompts).mean().item()
        for x in (images, blur(images, torch.full((64,), 1.5)), 0.6 * images + 0.4 * images.roll(1, 0))
    ]
    assert means[0] > means[1] + 0.1
    assert means[0] > means[2] + 0.1


def test_contract(scorer: Scorer) -> None:
    images, _ = random_pictures(4, torch.Generator().manual_seed(9))
    prompts = ["cat", "dog", "cat", "kangaroo"]
    scores = scorer.score(images, prompts)
    assert scores.shape == (4,)
    assert scores.dtype == torch.float32
    assert scores.abs().max() <= 1 + 1e-6
    assert torch.equal(scorer.score(images.double(), prompts), scores)
    # 8-bit levels: what rounding removes must not change the score.
    assert torch.equal(scorer.score((images * 255).round() / 255, prompts), scores)
    # An image enlarged by repetition is the same image; another size is resized.
    assert torch.allclose(scorer.score(interpolate(images, scale_factor=3.0), prompts), scores, atol=1e-5)
    assert prepare(torch.rand(2, 3, 50, 40)).shape == (2, 3, 32, 32)
    with pytest.raises(UnknownPromptError, match="unicorn"):
        scorer.score(images, ["cat", "dog", "unicorn", "bee"])
    with pytest.raises(ValueError, match="4 images but 1"):
        scorer.score(images, ["cat"])
    with pytest.raises(ValueError, match="shape"):
        scorer.score(images[0], prompts[:3])


def test_the_scorers_differ_in_architecture() -> None:
    first, second = (Scorer.load(ASSETS / "scorers" / name) for name in NAMES)
    assert first.encoder_name != second.encoder_name
    size = sum(p.stat().st_size for p in (ASSETS / "scorers").rglob("*") if p.is_file())
    assert size < 6_000_000


def test_save_and_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scorer = Scorer("transformer", ["cat", "dog"]).eval()
    scorer.save(tmp_path, seed=0)
    images = torch.rand(3, 3, 32, 32)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # not for their owner alone
    assert torch.equal(Scorer.load(tmp_path).rank(images), scorer.rank(images))
    with pytest.raises(ValueError, match="unknown encoder"):
        Scorer("mlp", ["cat"])


@pytest.mark.parametrize("name", ["alignment", "alignment_heldout"])
def test_scores_do_not_depend_on_how_many_pictures_are_scored_together(name):
    """Pictures are scored in chunks for speed alone: the same bits as all in one forward pass."""
    from sdpo_bench.rewards.alignment import SCORERS
    from sdpo_bench.rewards.scorer import CHUNK

    scorer = Scorer.load(SCORERS / name)
    images = torch.rand(2 * CHUNK + 17, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(scorer.rank(images), scorer.similarities(prepare(images)))
    assert scorer.rank(images[:0]).shape == (0, len(scorer.prompts))
