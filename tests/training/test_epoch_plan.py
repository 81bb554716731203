"""The plan of an epoch: drawn from the seed alone, divided among processes, and every step of every pair once."""

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import ProcessGroup
from sdpo_bench.training.epoch_plan import EpochPlan, draw_samples, trained_steps

PROMPTS = ("cat", "dog", "horse")


class Ranks(ProcessGroup):
    """A process of several, for what needs no communication."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def configuration(**changes) -> RunConfig:
    return RunConfig(**{"method": "sdpo", "pairs": 12, "pairs_per_update": 4, "steps": 5, "device": "cpu"} | changes)


def same(a: EpochPlan, b: EpochPlan) -> bool:
    tensors = [(a.samples.initial_seeds, b.samples.initial_seeds), (a.samples.step_seeds, b.samples.step_seeds)]
    for one, other in zip(a.inner_epochs, b.inner_epochs, strict=True):
        tensors += [(one.step_order, other.step_order), *zip(one.batches, other.batches, strict=True)]
    return a.samples.prompts == b.samples.prompts and all(torch.equal(x, y) for x, y in tensors)


def test_it_derives_from_the_seed_and_the_epoch_alone():
    config = configuration()
    torch.manual_seed(1)
    first = EpochPlan.draw(config, PROMPTS, 3)
    torch.manual_seed(2)
    assert same(first, EpochPlan.draw(config, PROMPTS, 3))
    assert not same(first, EpochPlan.draw(config, PROMPTS, 4))
    assert not same(first, EpochPlan.draw(dataclasses.replace(config, seed=1), PROMPTS, 3))


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 4),
    updates=st.sampled_from(("step", "trajectory")),
    max_pairs=st.integers(1, 7),
    last=st.booleans(),
    epoch=st.integers(1, 1000),
    inner=st.integers(1, 3),
)
def test_all_processes_together_train_every_step_of_every_pair_once(size, updates, max_pairs, last, epoch, inner):
    """In each inner epoch."""
    config = configuration(updates=updates, train_last_step=last, inner_epochs=inner)
    seen: Counter[tuple[int, int]] = Counter()
    numbers = set()
    for rank in range(size):
        plan = EpochPlan.draw(config, PROMPTS, epoch, Ranks(rank, size))
        batches = plan.optimizer_batches(max_pairs)
        numbers.add(len(batches))
        for micro_batch in (part for batch in batches for part in batch):
            assert len(micro_batch.pairs) <= max_pairs
            # Positions among this process's pairs are numbers of the epoch's pairs by way of `pairs`.
            seen.update(zip(plan.pairs[micro_batch.pairs].tolist(), micro_batch.steps.tolist(), strict=True))
    assert seen == dict.fromkeys(((p, s) for p in range(12) for s in range(config.trained_steps)), inner)
    assert numbers == {inner * 3 * (config.trained_steps if updates == "step" else 1)}


def test_step_shuffling_gives_each_pair_an_order_of_its_own():
    shuffled = EpochPlan.draw(configuration(), PROMPTS, 1).inner_epochs[0].step_order
    assert len({tuple(row) for row in shuffled.tolist()}) > 1
    assert torch.equal(shuffled.sort(1).values, torch.arange(5).expand(12, 5))
    plain = EpochPlan.draw(configuration(step_shuffle=False), PROMPTS, 1).inner_epochs[0].step_order
    assert torch.equal(plain, torch.arange(5).expand(12, 5))


def test_inner_epochs_train_the_same_samples_in_another_order():
    """The first is as without the others, and no process gets another's pairs."""
    config = configuration(inner_epochs=3)
    for rank in range(2):
        plan = EpochPlan.draw(config, PROMPTS, 7, Ranks(rank, 2))
        first, *later = plan.inner_epochs
        (alone,) = EpochPlan.draw(configuration(), PROMPTS, 7, Ranks(rank, 2)).inner_epochs
        assert torch.equal(first.step_order, alone.step_order)
        assert all(map(torch.equal, first.batches, alone.batches))
        for inner_epoch in later:
            assert torch.equal(torch.cat(inner_epoch.batches).sort().values, plan.pairs)
            assert not torch.equal(inner_epoch.step_order, first.step_order)
    assert any(not torch.equal(one, other) for one, other in zip(first.batches, later[0].batches, strict=True))


def test_the_samples_of_a_pair_share_x_t_and_no_other_noise():
    draw = draw_samples(PROMPTS, 6, 2, 0, 1)
    assert draw.initial_seeds.shape == (6,)
    assert len(draw.step_seeds.unique()) == 12
    some = draw.of(torch.tensor([4, 1]))
    assert some.prompts == [draw.prompts[4], draw.prompts[1]]
    assert torch.equal(some.step_seeds, draw.step_seeds[[4, 1]])


@pytest.mark.parametrize("count", [1, 30])
def test_prompts_are_drawn_with_replacement_from_all(count):
    drawn = Counter(draw_samples(PROMPTS, count, 2, 0, 1).prompts)
    assert drawn.keys() <= {*PROMPTS}
    assert drawn.total() == count


def test_a_window_moves_on_and_begins_anew():
    config = configuration(train_window=2, train_window_epochs=3, train_last_step=False)  # of steps 0 to 3
    windows = [trained_steps(config, epoch) for epoch in range(1, 13)]
    assert [window[0] for window in windows] == [0] * 3 + [1] * 3 + [2] * 3 + [0] * 3
    plan = EpochPlan.draw(config, PROMPTS, 4)
    assert set(plan.inner_epochs[0].step_order.flatten().tolist()) == {1, 2}
    assert (plan.noisy_steps, plan.log_prob_steps) == ((1, 2), 3)
    assert EpochPlan.draw(configuration(), PROMPTS, 4).noisy_steps is None


def test_a_share_of_the_steps_is_drawn_for_each_pair():
    config = configuration(train_share=0.6)  # 3 of 5
    plan = EpochPlan.draw(config, PROMPTS, 1)
    assert plan.inner_epochs[0].step_order.shape == (12, 3)
    assert all(len(set(row)) == 3 for row in plan.inner_epochs[0].step_order.tolist())
    assert len({frozenset(row) for row in plan.inner_epochs[0].step_order.tolist()}) > 1
    ordered = EpochPlan.draw(configuration(train_share=0.6, step_shuffle=False), PROMPTS, 1).inner_epochs[0].step_order
    assert torch.equal(ordered, ordered.sort(1).values)
    assert len(plan.optimizer_batches(99)) == 3 * 3  # an update for each of the three


def test_samples_with_an_x_t_each():
    draw = draw_samples(PROMPTS, 6, 2, 0, 1, shared_noise=False)
    assert draw.initial_seeds.shape == (6, 2)
    assert len(torch.cat([draw.initial_seeds, draw.step_seeds]).unique()) == 24
    assert torch.equal(draw.of(torch.tensor([4, 1])).initial_seeds, draw.initial_seeds[[4, 1]])
