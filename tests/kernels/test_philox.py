"""Noise: known answers of Philox4x32-10, and independence of the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sdpo_kernels import normal
from sdpo_kernels.philox import philox_4x32

# The known-answer vectors that the authors of Random123 publish for philox4x32 with 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    words = philox_4x32(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert tuple(int(w) for w in words) == expected


@settings(max_examples=30, deadline=None)
@given(
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9, unique=True),
    size=st.integers(1, 70),
    step=st.integers(0, 2**20),
)
def test_a_row_depends_on_its_seed_alone(seeds, size, step):
    rows = normal(torch.tensor(seeds), (size,), step)
    assert rows.shape == (len(seeds), size)
    assert torch.isfinite(rows).all()
    for seed, row in zip(seeds, rows, strict=True):
        assert torch.equal(normal(torch.tensor([seed]), (size,), step)[0], row)
    # A larger latent begins with the same numbers; another step has others.
    assert torch.equal(normal(torch.tensor(seeds), (size + 4,), step)[:, :size], rows)
    assert not torch.equal(normal(torch.tensor(seeds), (size,), step + 1), rows)


def test_distribution():
    z = normal(torch.arange(500), (4, 8, 8)).flatten().double().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    rows = z.reshape(500, -1)
    assert abs(stats.pearsonr(rows[:-1].ravel(), rows[1:].ravel())[0]) < 0.015
    assert abs(stats.pearsonr(z[:-1], z[1:])[0]) < 0.015


def test_bad_seeds():
    with pytest.raises(TypeError, match="int64"):
        normal(torch.arange(3, dtype=torch.int32), (4,))
