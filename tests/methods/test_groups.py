"""Invariants of every method that takes groups of more than two samples; those of pairs are in test_methods."""

import dataclasses

import pytest
import torch
from support import groups, noised

from sdpo_bench.methods import METHODS, build_method

CLIPS = {"clip_range": 1e-3, "advantage_clip": 5.0}
ORDER = torch.tensor([2, 0, 3, 1])
every_group = pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if not method.pairwise and method.learns_from != "reward"]
)


def made(name):
    """An output of groups of four, their batch, and the module that makes and permutes it."""
    kind = noised if METHODS[name].learns_from == "noised" else groups
    return *(kind.noised_batch() if kind is noised else kind.batch_of()), kind


@every_group
def test_a_permutation_within_the_groups_changes_nothing(name):
    method, (output, batch, kind) = build_method(name), made(name)
    result = method.loss(output, batch, **CLIPS)
    other = method.loss(output[:, ORDER], kind.permuted(batch, ORDER), **CLIPS)
    torch.testing.assert_close(other.loss, result.loss)
    torch.testing.assert_close(other.log_prob, result.log_prob[:, ORDER])
    _, grad = method.loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    _, moved = method.loss_and_grad(output[:, ORDER], kind.permuted(batch, ORDER), grad_scale=1.0, **CLIPS)
    torch.testing.assert_close(moved, grad[:, ORDER])


@every_group
def test_a_gradient_step_moves_toward_the_better_samples(name):
    """In each group the better samples become likelier, or are erred on less, and the others the other way."""
    method, (output, batch, _) = build_method(name), made(name)
    advantages = torch.tensor([[1.5, -0.5, 0.5, -1.5]]).double().expand(3, 4).contiguous()
    batch = dataclasses.replace(batch, advantages=advantages, old_output=output, reference_output=output)
    start = method.loss(output, batch, **CLIPS).log_prob
    if hasattr(batch, "old_log_prob"):
        batch = dataclasses.replace(batch, old_log_prob=start)  # the ratio is 1
    _, grad = method.loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    moved = method.loss(output - 1e-3 * grad, batch, **CLIPS).log_prob - start
    assert (moved.sign() == advantages.sign()).all()


@every_group
@pytest.mark.parametrize("distance", [1e4, -1e4])
def test_far_from_the_old_policy_loss_and_gradient_are_finite(name, distance):
    method, (output, batch, _) = build_method(name), made(name)
    changes = {"old_output": output + distance * torch.arange(4).reshape(1, 4, 1, 1, 1)}
    if hasattr(batch, "old_log_prob"):
        changes["old_log_prob"] = batch.old_log_prob + distance * torch.tensor([1, -1, 0, 1])
    result, grad = method.loss_and_grad(output, dataclasses.replace(batch, **changes), grad_scale=1.0, **CLIPS)
    assert torch.isfinite(result.loss).all()
    assert torch.isfinite(grad).all()
