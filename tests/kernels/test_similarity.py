"""The anchor and its similarities against a plain loop in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_kernels import anchor_similarity, normal
from torch.nn.functional import cosine_similarity


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), steps=st.integers(1, 9), size=st.integers(2, 30), seed=st.integers(0, 10**6))
def test_against_a_loop(n, steps, size, seed):
    clean = normal(torch.arange(n * steps) + seed, (size,)).reshape(n, steps, size)
    result = anchor_similarity(clean)
    for i in range(n):
        o = clean[i].double()
        cos = [[cosine_similarity(o[j], o[k], 0).item() for k in range(steps)] for j in range(steps)]
        total = [cos[k][0] + cos[k][-1] for k in range(steps)]
        anchor = int(result.anchor_index[i])
        if steps > 2:
            assert 1 <= anchor <= steps - 2
            assert total[anchor] == pytest.approx(min(total[1:-1]), abs=1e-5)
        else:
            assert anchor == steps - 1
        for k in range(steps):
            assert result.first[i, k].item() == pytest.approx(cos[k][0], abs=1e-5)
            assert result.last[i, k].item() == pytest.approx(cos[k][-1], abs=1e-5)
            assert result.anchor[i, k].item() == pytest.approx(cos[k][anchor], abs=1e-5)
