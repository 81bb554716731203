"""The Vendi score on pictures whose similarities are known."""

import math

import pytest
import torch
from sdpo_kernels import normal

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.rewards import load_reward


def flat(*colours):
    """Pictures of one colour each."""
    return torch.tensor(colours, dtype=torch.float32)[:, :, None, None].expand(-1, 3, 8, 8)


RED, GREEN, BLUE, YELLOW, BLACK = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 0, 0)


def of_shares(*shares):
    """The score whose K/n has these eigenvalues."""
    return math.exp(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        ([RED], 1),
        ([RED, RED, RED, RED], 1),
        ([RED, (0.4, 0, 0)], 1),  # the same direction
        ([RED, GREEN], 2),
        ([RED, GREEN, BLUE], 3),
        ([RED, RED, RED, GREEN], of_shares(3 / 4, 1 / 4)),
        ([RED, YELLOW], of_shares(0.5 + 0.5**1.5, 0.5 - 0.5**1.5)),  # their cosine is the square root of a half
        ([BLACK, BLACK], 1),
        ([BLACK, RED], 2),
        ([BLACK, RED, GREEN, BLUE], 4),
    ],
)
def test_vendi_of_known_similarities(colours, expected):
    values = load_reward("vendi")(flat(*colours), ["cat"] * len(colours))
    assert values.tolist() == pytest.approx([expected] * len(colours), rel=1e-6)


def test_each_prompt_has_a_value_of_its_own():
    values = load_reward("vendi")(flat(RED, RED, GREEN, RED, BLUE), ["cat", "dog", "cat", "dog", "cow"])
    assert values.tolist() == pytest.approx([2, 1, 2, 1, 1])


def test_heldout_vendi_is_of_the_scorers_embeddings():
    reward = load_reward("vendi_heldout")
    images = normal(torch.arange(4), (3, 32, 32)).mul(0.3).add(0.5).clamp(0, 1)
    lengths = torch.linalg.svdvals(reward.scorer.embed(images).double() / 2)  # their squares are K/n's eigenvalues
    expected = math.exp(-sum(s**2 * math.log(s**2) for s in lengths.tolist()))
    assert 1 < expected < 4
    assert reward(images, ["anything"] * 4).tolist() == pytest.approx([expected] * 4, rel=1e-5)
    assert reward(images[[0, 0, 0]], ["anything"] * 3).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_numbers_of_noises_that_differ_are_refused():
    """More pictures have a larger score, and curves would have a step where their number changes."""
    for name in ("vendi", "vendi_heldout"):
        message = rf"^{name} grows with the number of noises, which --eval-interim-noises \(2\) .* \(4\): name it with "
        with pytest.raises(UserError, match=message):
            RunConfig(eval_rewards=(name,), eval_interim_noises=2)
        RunConfig(eval_rewards=(name,), eval_interim_noises=4)
        RunConfig(eval_last_rewards=(name,), eval_interim_noises=2)
