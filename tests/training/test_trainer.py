"""The trainer on a small random pipeline: the invariants that need a model, records, resumption, saving."""

import dataclasses
import hashlib
import json
import shutil

import pytest
import sdpo_kernels
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from support.synthetic_records import compress
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdpo_bench import dense_rewards
from sdpo_bench.catalogue import BUDGETS
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model
from sdpo_bench.methods import METHODS, build_method
from sdpo_bench.policies import load_policy
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.lookup import find_run
from sdpo_bench.records.reader import load_run
from sdpo_bench.records.writer import RunWriter
from sdpo_bench.rewards import Reward, load_reward
from sdpo_bench.training.advantages import PerPromptNormalizer
from sdpo_bench.training.divergence import TrainingDiverged, likely_causes
from sdpo_bench.training.evaluation import evaluate, pictures
from sdpo_bench.training.loop import train
from sdpo_bench.training.sampling import derive_seeds, sample
from sdpo_bench.training.trainer import Trainer
from sdpo_bench.training.weight_digests import changed, weights_of


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts")
    (prompts / "seen").write_text("cat\ndog\nhorse\n")
    (prompts / "unseen").write_text("wolf\nfox\n")
    return RunConfig(
        prompts=str(prompts / "seen"),
        unseen_prompts=str(prompts / "unseen"),
        model=str(tiny_model),
        reward="colourfulness",
        eval_rewards=(),
        steps=3,
        epochs=3,
        pairs=4,
        pairs_per_update=2,
        learning_rate=3e-3,
        eval_every=2,
        eval_start=False,
        eval_steps=(1, 3),
        eval_noises=1,
        checkpoint_every=1,
        device="cpu",
    )


def folder_of(root, config):
    return root / run_id(config.to_json())


def trainer_of(config):
    return Trainer(config, load_policy(config), load_reward(config.reward))


def batches_of(config, epoch):
    trainer = trainer_of(config)
    return trainer.optimizer_batches(trainer.plan(epoch))


def weights(policy):
    return {k: v.clone() for k, v in policy.state_dict().items()}


@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(config, name, finetune):
    config = dataclasses.replace(config, method=name, finetune=finetune, label="", learning_rate=1e-4)
    trainer = trainer_of(config)
    method, G = build_method(name), config.samples_per_group
    on_policy = 0.0 if method.learns_from in ("step", "trajectory") else None
    assert trainer.check_on_policy(1) == on_policy  # the unchanged policy's log-ratio
    assert trainer.policy.passes == (0, 0)
    before = weights(trainer.policy)
    row = trainer.train_epoch(1).to_row()
    assert any(not torch.equal(v, before[k]) for k, v in trainer.policy.state_dict().items())
    assert row["samples"] == 4 * G
    assert row["reward_queries"] == (4 * (1 + G * 2) if method.dense else 4 * G)
    assert row["optimiser_steps"] == (2 * 3 if method.updates == "step" else 2)
    passes = cost_model.passes(dataclasses.replace(config, epochs=1))
    assert row["model_evaluations"] == sum(passes.values())
    assert row["backward_passes"] == passes["train"]
    if method.learns_from in ("step", "trajectory"):
        forward = 4 * (1 + G * 2)  # a group's first step is evaluated once
        again = method.reference + method.reference_output + (method.learns_from == "trajectory")
        assert passes == {"sample": forward, "log_prob": again * forward, "train": forward}
    assert row["reward_gradients"] == 4 * G * (method.reward_gradient(3) is not None)
    assert (row["log_ratio_max"] > 0) == (method.learns_from != "reward")
    assert all(value >= 0 for value in row["seconds"].values())


@pytest.mark.parametrize("name", ["sdpo", "ddpo", "rebel", "d3po", "grpo_guard", "rtdmd_lite"])
def test_inner_epochs_train_the_same_samples_again(config, name):
    """Sampled and scored once; the counts say what the passes cost."""
    config = dataclasses.replace(config, method=name, label="")
    once, twice = trainer_of(config), trainer_of(dataclasses.replace(config, inner_epochs=2))
    one, two = once.train_epoch(1).to_row(), twice.train_epoch(1).to_row()
    for same in ("samples", "reward_queries", "reward_mean"):
        assert two[same] == one[same]
    for doubled in ("optimiser_steps", "backward_passes", "reward_gradients"):
        assert two[doubled] == 2 * one[doubled]
    passes = cost_model.passes(dataclasses.replace(config, epochs=1, inner_epochs=2))
    assert two["model_evaluations"] == sum(passes.values())
    assert two["backward_passes"] == passes["train"]
    assert two["log_ratio_max"] > one["log_ratio_max"]


def test_kl_is_the_mean_of_old_minus_new_log_probs(config, monkeypatch):
    trainer = trainer_of(dataclasses.replace(config, method="ddpo", label="", pairs=4, pairs_per_update=2))
    ratios = []

    def backward(*arguments):
        done = Trainer.step_backward(trainer, *arguments)
        ratios.append(done.log_ratio.mean())
        return done

    monkeypatch.setattr(trainer, "step_backward", backward)
    row = trainer.train_epoch(1).to_row()
    assert row["kl"] == pytest.approx(-float(torch.stack(ratios).mean()), rel=1e-5)
    assert 0 < abs(row["kl"]) < row["log_ratio_max"]


@pytest.mark.parametrize("name", ["diffusion_nft", "crd", "pso", "draft"])
def test_methods_without_a_ratio_have_no_inner_epochs(config, name):
    with pytest.raises(UserError, match=r"--inner-epochs is 2; .*expected 1"):
        dataclasses.replace(config, method=name, label="", group_size=None, inner_epochs=2)


class Constant(Reward):
    """A saturated grader: every picture gets the same value, which no binary fraction equals."""

    name, revision, scale = "constant", "1", "none"
    differentiable = True

    def __call__(self, images, prompts):
        return torch.full((len(prompts),), 12.7)

    def differentiable_score(self, images, prompts):
        return self(images, prompts) + 0 * images.flatten(1).sum(1)


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("name", METHODS)
def test_a_constant_reward_leaves_the_weights_as_they_were(config, name, steps):
    """From the whole batch's statistics in the first epoch to the prompts' own in the later ones."""
    config = dataclasses.replace(
        config,
        method=name,
        label="",
        finetune="full",
        steps=steps,
        learning_rate=1e-4,
        prompts=None,
        unseen_prompts=None,
        prompt_stats_min_count=2,
    )
    trainer = Trainer(config, load_policy(config), Constant())
    before = weights(trainer.policy)
    for epoch in (1, 2):
        row = trainer.train_epoch(epoch).to_row()
        assert row["reward_mean"] == pytest.approx(12.7)
        assert row["log_ratio_max"] == row["grad_norm"] == row.get("kl", 0) == 0
        assert row["reward_std"] < 1e-5  # float32 has no 12.7
    assert all(torch.equal(value, before[name]) for name, value in trainer.policy.state_dict().items())


def test_the_log_says_how_many_advantages_have_statistics_of_their_prompt(config):
    trainer = trainer_of(dataclasses.replace(config, prompt_stats_min_count=6))
    shares = [trainer.train_epoch(epoch).to_row()["prompt_stats_share"] for epoch in (1, 2, 3)]
    drawn, expected = {}, []
    for epoch in (1, 2, 3):
        prompts = trainer.plan(epoch).samples.prompts
        for prompt in prompts:
            drawn[prompt] = drawn.get(prompt, 0) + 2
        expected.append(sum(drawn[prompt] >= 6 for prompt in prompts) / len(prompts))
    assert shares == expected
    assert shares[0] < shares[-1]


def test_a_compiled_model_is_not_trained_on_a_cpu(config):
    compiled = dataclasses.replace(config, compile=True)
    with pytest.raises(UserError, match=r"--compile.*round differently.*leave --compile out"):
        Trainer(compiled, load_policy(config), load_reward(config.reward))


@pytest.mark.parametrize("name", METHODS)
def test_accumulation_gives_the_gradient_of_the_batch(config, name):
    """One pair at a time, or all at once; whole-trajectory methods too, whose loss is no sum over steps."""
    entries = dataclasses.replace(config, method=name, label="").trained_steps
    gradients = []
    G = dataclasses.replace(config, method=name, label="").samples_per_group
    for rows in (12 * G, G):
        c = dataclasses.replace(
            config, method=name, label="", rows=rows, pad_rows=1, pairs_per_update=4, updates="trajectory"
        )
        trainer = trainer_of(c)
        trainer.optimiser.step = lambda: None
        trajectory = trainer.sample(trainer.plan(1))
        advantages = sdpo_kernels.normal(torch.arange(4), (G, 1)).expand(4, G, 3)
        reference = trainer.reference_log_prob(trajectory) if trainer.method.reference else None
        (group,) = trainer.optimizer_batches(trainer.plan(1))
        # 4 pairs at 3 steps: micro-batches may hold several steps, and never more latents than --rows.
        assert [len(steps) for _, steps in group] == ([4 * entries] if rows > G else [1] * 4 * entries)
        assert len({tuple(entry) for part in group for entry in torch.stack(part, 1).tolist()}) == 4 * entries
        trainer.update(group, trajectory, advantages, reference)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters]))
    difference = (gradients[0] - gradients[1]).abs()
    assert difference.max() < 1e-4 * gradients[0].abs().max()
    assert difference.mean() < 1e-5 * gradients[0].abs().max()


def test_trajectory_gradient_is_the_graphs(config):
    """The two passes of a whole-trajectory method against autograd through all steps at once."""
    c = dataclasses.replace(config, method="rebel", label="", max_grad_norm=1e9, pairs_per_update=4)
    trainer = trainer_of(c)
    trajectory = trainer.sample(trainer.plan(1))
    trainer.optimiser.step()  # nothing yet: no gradients
    advantages = sdpo_kernels.normal(torch.arange(4), (2, 1)).expand(4, 2, 3)
    with torch.no_grad():  # leave the policy that sampled, so that log-ratios count
        for i, p in enumerate(trainer.policy.parameters):
            p += 0.02 * sdpo_kernels.normal(torch.tensor([i]), tuple(p.shape))[0]
    trainer.optimiser.step = lambda: None
    trainer.update(trainer.optimizer_batches(trainer.plan(1))[0], trajectory, advantages, None)
    ours = torch.cat([p.grad.flatten() for p in trainer.policy.parameters])
    trainer.optimiser.zero_grad()
    log_prob = torch.stack([trainer.log_prob(trajectory, torch.arange(4), torch.full((4,), k)) for k in range(3)], -1)
    log_ratio = (log_prob - trajectory.log_prob).sum(-1)
    target = (advantages[:, 0] - advantages[:, 1])[:, -1]
    ((log_ratio[:, 0] - log_ratio[:, 1] - target) ** 2).mean().backward()
    direct = torch.cat([p.grad.flatten() for p in trainer.policy.parameters])
    assert torch.allclose(ours, direct, rtol=1e-3, atol=1e-5 * direct.abs().max())


def test_step_gradient_is_the_graphs(config):
    """Each step's latents, log-probs and advantages belong together: the sum over steps against one graph."""
    c = dataclasses.replace(config, max_grad_norm=1e9, pairs_per_update=4, updates="trajectory", clip_range=1e9)
    trainer = trainer_of(c)
    trajectory = trainer.sample(trainer.plan(1))
    advantages = sdpo_kernels.normal(torch.arange(4), (2, 3))
    with torch.no_grad():
        for i, p in enumerate(trainer.policy.parameters):
            p += 0.02 * sdpo_kernels.normal(torch.tensor([i]), tuple(p.shape))[0]
    trainer.optimiser.step = lambda: None
    trainer.update(trainer.optimizer_batches(trainer.plan(1))[0], trajectory, advantages, None)
    ours = torch.cat([p.grad.flatten() for p in trainer.policy.parameters])
    trainer.optimiser.zero_grad()
    loss = 0
    for k in range(3):
        log_ratio = trainer.log_prob(trajectory, torch.arange(4), torch.full((4,), k)) - trajectory.log_prob[..., k]
        target = advantages[:, 0, k] - advantages[:, 1, k]
        loss = loss + ((0.99**k * (log_ratio[:, 0] - log_ratio[:, 1]) - target) ** 2).mean() / 3
    loss.backward()
    direct = torch.cat([p.grad.flatten() for p in trainer.policy.parameters])
    assert torch.allclose(ours, direct, rtol=1e-3, atol=1e-5 * direct.abs().max())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.learns_from == "trajectory"])
def test_updates_per_step_keep_the_last_visit_of_the_other_steps(config, name):
    c = dataclasses.replace(config, method=name, label="", updates="step", pairs_per_update=4)
    trainer = trainer_of(c)
    trajectory = trainer.sample(trainer.plan(1))
    advantages = sdpo_kernels.normal(torch.arange(4), (2, 1)).expand(4, 2, 3)
    reference = trainer.reference_log_prob(trajectory) if trainer.method.reference else None
    visited = torch.zeros(4, 2, 3, dtype=torch.bool)
    for number, group in enumerate(trainer.optimizer_batches(trainer.plan(1))):
        trainer.update(group, trajectory, advantages, reference)
        ((pairs, steps),) = group
        visited[pairs, :, steps] = True
        current = trainer._visited.log_prob
        assert torch.equal(current[~visited], trajectory.log_prob[~visited])
        if number:  # at the first update the policy is still the one that sampled
            assert (current[pairs, :, steps] != trajectory.log_prob[pairs, :, steps]).any()
    assert visited.all()
    assert trainer.counts.optimiser_steps == 3


@pytest.mark.parametrize("updates", ["step", "trajectory"])
def test_groups_cover_every_step_of_every_pair_once(config, updates):
    c = dataclasses.replace(config, updates=updates, train_last_step=False, pairs=6, steps=5)
    groups = batches_of(c, 1)
    assert len(groups) == (3 * 4 if updates == "step" else 3)
    entries = [
        (int(p), int(k)) for group in groups for pairs, steps in group for p, k in zip(pairs, steps, strict=True)
    ]
    assert sorted(entries) == [(p, k) for p in range(6) for k in range(4)]
    orders = {p: [k for q, k in entries if q == p] for p in range(6)}
    assert len({tuple(order) for order in orders.values()}) > 1  # each pair has a permutation of its own
    again = batches_of(c, 2)
    assert [[s.tolist() for _, s in g] for g in groups] != [[s.tolist() for _, s in g] for g in again]


def test_without_shuffling_all_pairs_train_the_same_step(config):
    groups = batches_of(dataclasses.replace(config, step_shuffle=False, updates="step"), 1)
    steps = [{int(k) for _, ks in group for k in ks} for group in groups]
    assert steps == [{0}, {0}, {1}, {1}, {2}, {2}]
    shuffled = batches_of(dataclasses.replace(config, updates="step"), 1)[0]
    assert len({int(k) for _, ks in shuffled for k in ks}) > 1


def test_last_steps_and_rewards_are_evaluated_last(config, tmp_path):
    config = dataclasses.replace(config, eval_last_steps=(2,), eval_last_rewards=("diversity",))
    train(config, folder_of(tmp_path, config))
    rows = load_run(folder_of(tmp_path, config)).eval
    last = [(3, steps, reward) for steps in (1, 3, 2) for reward in (config.reward, "diversity")]
    found = [(row["epoch"], row["steps"], row["reward"]) for row in rows]
    assert found == [(2, 1, config.reward), (2, 3, config.reward), *last]
    with pytest.raises(UserError, match="that --eval-steps lacks"):
        dataclasses.replace(config, eval_last_steps=(3,))


def test_a_probe_changes_nothing(config, tmp_path):
    """Its samples are its own, and enter neither weights nor counts; its rows are of every budget."""
    probed = dataclasses.replace(config, probe_every=1)
    folders = [folder_of(tmp_path, c) for c in (config, probed)]
    for c, folder in zip((config, probed), folders, strict=True):
        train(c, folder)
    plain, other = (load_run(folder) for folder in folders)
    assert plain.dense == []
    assert [(row["epoch"], row["budget"]) for row in other.dense] == [(e, b) for e in range(4) for b in BUDGETS]
    assert all(len(row["mae"]) == config.steps for row in other.dense)
    strip = [{k: v for k, v in row.items() if k != "seconds"} for run in (plain, other) for row in run.train]
    assert strip[:3] == strip[3:]
    assert plain.eval == other.eval
    trainer = trainer_of(probed)
    seen = []
    trainer.score = lambda latents, prompts: (seen.append(latents), latents.flatten(1).sum(1))[1]
    trainer.probe(1)
    assert not any(
        torch.equal(a, b) for a in trainer.sample(trainer.plan(1)).predicted_clean.flatten(0, 2) for b in seen[0]
    )


def test_evaluations_on_the_way_may_take_fewer_noises(config, tmp_path):
    few = dataclasses.replace(config, eval_noises=3, eval_interim_noises=1)
    full = dataclasses.replace(config, eval_noises=3)
    runs = []
    for c in (few, full):
        folder = folder_of(tmp_path, c)
        train(c, folder)
        runs.append(load_run(folder))
    assert [(row["epoch"], row["noise_seeds"]) for row in runs[0].eval] == [
        (epoch, seeds) for epoch, seeds in ((2, [0]), (3, [0, 1, 2])) for _ in (1, 3)
    ]
    for row, other in zip(*(run.eval for run in runs), strict=True):  # the same noises, and the same training
        for split, prompts in row["values"].items():
            for prompt, values in prompts.items():
                assert other["values"][split][prompt][: len(values)] == values


@pytest.mark.parametrize(
    ("method", "dense", "known_steps"),
    [
        ("ddpo_dense", "exact", [0, 1, 2, 3]),
        ("ddpo_dense", "anchored", [0, 0, 0, 3]),  # which of steps 1 and 2 is queried depends on step 3's picture
        ("ddpo", "anchored", None),
        ("sdpo_causal", "anchored", None),
    ],
)
def test_baselines_are_rewards_from_before_the_action(config, monkeypatch, method, dense, known_steps):
    trainer = trainer_of(dataclasses.replace(config, method=method, dense=dense, label="", steps=4))
    seen, normalise = [], PerPromptNormalizer.__call__
    monkeypatch.setattr(
        PerPromptNormalizer, "__call__", lambda self, *args: seen.append(args) or normalise(self, *args)
    )
    own = dense_rewards.compute_dense_rewards(dense, trainer.sample(trainer.plan(1)), trainer.score)
    trainer.train_epoch(1).to_row()
    ((_, returns, known),) = seen
    rewards = own.values if method != "ddpo" else own.values[..., -1:]
    assert torch.allclose(returns.float(), trainer.method.returns(rewards))
    assert (known is None) == (known_steps is None)
    if known_steps:
        assert torch.allclose(known, own.values[..., known_steps])


def test_a_critic_takes_out_what_it_has_learned(config):
    """From the second epoch on: in the first the run is DDPO's, bit for bit."""
    config = dataclasses.replace(config, label="", learning_rate=1e-4)
    critic, plain = (trainer_of(dataclasses.replace(config, method=name)) for name in ("ddpo_critic", "ddpo"))
    rows = [[trainer.train_epoch(epoch).to_row() for trainer in (critic, plain)] for epoch in (1, 2)]
    without = [[{k: v for k, v in row.items() if k != "seconds"} for row in pair] for pair in rows]
    assert without[0][0] == without[0][1]
    explained = without[1][0].pop("explained_variance")
    assert len(explained) == 3
    assert all(0 < share < 1 for share in explained)
    assert without[1][0]["reward_mean"] == without[1][1]["reward_mean"]
    assert without[1][0]["reward_queries"] == without[1][1]["reward_queries"]
    assert without[1][0]["grad_norm"] != without[1][1]["grad_norm"]


def test_pairs_share_their_start_and_nothing_else(config):
    trainer = trainer_of(config)
    trajectory = trainer.sample(trainer.plan(1))
    latents = trajectory.latents
    assert torch.equal(latents[:, 0, 0], latents[:, 1, 0])
    assert torch.equal(trajectory.predicted_clean[:, 0, 0], trajectory.predicted_clean[:, 1, 0])
    assert not torch.isclose(latents[:, 0, 1], latents[:, 1, 1]).any(-1).all()
    assert latents.shape == (4, 2, 4, *latents.shape[3:])
    assert trajectory.log_prob.shape == (4, 2, 3)


def test_samples_do_not_depend_on_the_batch(config):
    """Sampling one of 40 prompts alone gives the same bits."""
    policy = load_policy(config)
    prompts = ["cat", "dog", "cow", "ant"] * 10
    seeds = {"initial_seeds": derive_seeds(1, count=40), "step_seeds": derive_seeds(2, count=40).reshape(40, 1)}
    whole = sample(policy, prompts, steps=3, **seeds)
    for i in (0, 17, 39):
        one = sample(policy, prompts[i : i + 1], steps=3, **{k: v[i : i + 1] for k, v in seeds.items()})
        assert torch.equal(one.latents[0], whole.latents[i])
        assert torch.equal(one.log_prob[0], whole.log_prob[i])


def test_evaluation_does_not_depend_on_the_batch(config):
    policy = load_policy(config)
    both = pictures(policy, ["cat", "dog"], [0, 1, 2], 2, config)
    alone = pictures(policy, ["dog"], [2], 2, config)
    assert torch.equal(both[5], alone[0])
    rewards = {"colourfulness": load_reward("colourfulness")}
    rows = [evaluate(policy, dataclasses.replace(config, rows=rows), rewards) for rows in (64, 16)]
    assert rows[0] == rows[1]
    assert [row["steps"] for row in rows[0]] == [1, 3]
    assert set(rows[0][0]["values"]) == {"seen", "unseen"}
    other = evaluate(policy, dataclasses.replace(config, eval_seed=1), rewards)
    assert other[0]["values"] != rows[0][0]["values"]


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_reference_is_the_pretrained_model(config, finetune):
    c = dataclasses.replace(config, finetune=finetune)
    trainer = trainer_of(c)
    arguments = (
        sdpo_kernels.normal(torch.arange(16), trainer.policy.latent_shape),
        torch.full((16,), 500),
        trainer.policy.encode(["cat"] * 16),
    )
    with torch.no_grad():
        before = trainer.policy.predict(*arguments)
    trainer.train_epoch(1).to_row()
    with torch.no_grad():
        after = trainer.policy.predict(*arguments)
        with trainer.policy.reference():
            reference = trainer.policy.predict(*arguments)
    assert torch.equal(reference, before)
    assert not torch.equal(after, before)


def without_seconds(record):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in record.train], record.eval


class Stop(Exception):
    pass


def stop_at(epoch, phase):
    def on_epoch(event):
        if (event["epoch"], event["phase"]) == (epoch, phase):
            raise Stop

    return on_epoch


@pytest.mark.parametrize("name", METHODS)
def test_resume_is_exact(config, tmp_path, name):
    """Stopped twice, between a record and its checkpoint: the same records and weights as without, bit for bit."""
    config = dataclasses.replace(config, method=name, label="", checkpoint_every=2, epochs=4, probe_every=2)
    whole, parts = folder_of(tmp_path / "whole", config), folder_of(tmp_path / "parts", config)
    train(config, whole)
    with pytest.raises(Stop):
        train(config, parts, on_epoch=stop_at(1, "train"))
    with pytest.raises(Stop):
        train(config, parts, resume=True, on_epoch=stop_at(3, "train"))
    assert load_run(parts).done is None
    train(config, parts, resume=True)
    assert without_seconds(load_run(parts)) == without_seconds(load_run(whole))
    one, other = (load_file(next((f / "adapter").glob("*.safetensors"))) for f in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert (whole / "grid_after.png").read_bytes() == (parts / "grid_after.png").read_bytes()


def test_a_run_goes_on_with_other_settings_of_execution(config, tmp_path):
    """Stopped with --rows 64, gone on with --rows 8 in the same folder, to the same end; its id stays valid."""
    whole, parts = folder_of(tmp_path / "whole", config), folder_of(tmp_path / "parts", config)
    train(config, whole)
    with pytest.raises(Stop):
        train(config, parts, on_epoch=stop_at(2, "train"))
    other = dataclasses.replace(config, rows=8, pad_rows=8, checkpoint_every=2, gradient_checkpointing=True)
    assert find_run(parts.parent, other.to_json()) == parts
    events = []
    train(other, parts, resume=True, on_epoch=events.append)
    assert (events[0]["phase"], events[0]["epoch"], events[0]["recorded"]) == ("begin", 1, 2)
    record = load_run(parts)
    assert [row["epoch"] for row in record.train] == [1, 2, 3]
    assert record.config["rows"] == 8
    assert record.config["begun"] == {
        "rows": 64,
        "pad_rows": 16,
        "checkpoint_every": 1,
        "gradient_checkpointing": None,
    }
    for row, expected in zip(record.eval, load_run(whole).eval, strict=True):
        values = row["values"]["seen"]
        assert values == {prompt: pytest.approx(v, abs=1e-3) for prompt, v in expected["values"]["seen"].items()}


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_goes_on_with_more_epochs(config, tmp_path, finished):
    """As if it had been begun with them, bit for bit, but for the evaluation after what was its last epoch. A finished
    one needs its checkpoint."""
    longer = dataclasses.replace(config, epochs=4)
    whole, parts = folder_of(tmp_path / "whole", longer), folder_of(tmp_path / "parts" / "raw", config)
    train(longer, whole)
    if finished:
        train(config, parts, keep=True)
        compress(parts)
        assert (parts / "checkpoint.pt").exists()
    else:
        with pytest.raises(Stop):
            train(config, parts, on_epoch=stop_at(3, "train"))
    assert find_run(parts.parent, longer.to_json()) == parts
    train(longer, parts, resume=True)
    record, expected = load_run(parts), load_run(whole)
    assert without_seconds(record)[0] == without_seconds(expected)[0]
    assert [row for row in record.eval if row["epoch"] != 3] == expected.eval
    assert record.done["epochs"] == record.config["epochs"] == 4
    one, other = (load_file(next((f / "adapter").glob("*.safetensors"))) for f in (whole, parts))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert find_run(parts.parent, longer.to_json()) == parts
    with pytest.raises(RecordError, match=r"has 4 epochs finished, so it can't have fewer \(--epochs 3\); eval"):
        train(config, parts, resume=True)
    with pytest.raises(UserError, match="finished run of 4 epochs without a checkpoint, so it can't continue to 5"):
        train(dataclasses.replace(config, epochs=5), parts, resume=True)


def test_places_are_no_part_of_a_run(config, tmp_path, tiny_model, monkeypatch):
    """A configuration holds names: the same id wherever model and prompts lie and however their paths are spelt."""
    row = config.to_json()
    assert (row["model"], row["prompts"], row["unseen_prompts"]) == (tiny_model.name, "seen", "unseen")
    (tmp_path / "elsewhere").mkdir()
    for file in (config.prompts, config.unseen_prompts):
        shutil.copy(file, tmp_path / "elsewhere")
    monkeypatch.chdir(tiny_model.parent)
    moved = dataclasses.replace(
        config,
        model=f"./{tiny_model.name}/",
        prompts=str(tmp_path / "elsewhere" / "seen"),
        unseen_prompts=str(tmp_path / "." / "elsewhere" / "unseen"),
    )
    assert moved.to_json() == row
    (tmp_path / "elsewhere" / "seen").write_text("cat\n")
    assert moved.to_json() == row, "read once"
    assert run_id(dataclasses.replace(moved).to_json()) != run_id(row)
    assert dataclasses.replace(config, model="stabilityai/sd-turbo").to_json()["model"] == "stabilityai/sd-turbo"


def test_a_run_of_an_earlier_version_whose_configuration_has_paths(config, tmp_path):
    """It is found, goes on, and keeps its id."""
    row = config.to_json() | {name: getattr(config, name) for name in ("model", "prompts", "unseen_prompts")}
    row["run_id"] = run_id(row)
    folder = tmp_path / row["run_id"]
    with RunWriter(folder) as writer:
        writer.write_config(row)
    assert find_run(tmp_path, config.to_json()) == folder
    train(dataclasses.replace(config, epochs=4), folder, resume=True)
    record = load_run(folder)
    assert (record.run_id, record.config["model"]) == (row["run_id"], config.model)
    assert record.config["begun"] == {"epochs": 3}


def test_prompts_edited_during_a_run_change_nothing(config, tmp_path):
    for name in ("seen", "unseen"):
        shutil.copy(getattr(config, {"seen": "prompts", "unseen": "unseen_prompts"}[name]), tmp_path / name)
    config = dataclasses.replace(config, prompts=str(tmp_path / "seen"), unseen_prompts=str(tmp_path / "unseen"))
    folder = folder_of(tmp_path / "runs", config)

    def edit(event):
        (tmp_path / "seen").write_text("a robot\n")
        (tmp_path / "unseen").write_text("a house\n")

    train(config, folder, on_epoch=edit)
    assert {tuple(row["values"]["seen"]) for row in load_run(folder).eval} == {("cat", "dog", "horse")}
    assert {tuple(row["values"]["unseen"]) for row in load_run(folder).eval} == {("fox", "wolf")}


def test_other_weights_under_the_same_path_are_refused(config, tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = dataclasses.replace(config, model=str(model))
    folder = folder_of(tmp_path / "runs", config)
    with pytest.raises(Stop):
        train(config, folder, on_epoch=stop_at(2, "train"))
    recorded = json.loads((folder / "provenance.json").read_text())["weights"]["model"]
    (weights_file,) = (model / "unet").glob("*.safetensors")
    name = f"unet/{weights_file.name}"
    assert recorded[name] == hashlib.sha256(weights_file.read_bytes()).hexdigest()
    assert {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"} <= recorded.keys()
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    good, state = weights_file.read_bytes(), load_file(weights_file)
    save_file({key: value * 1.01 for key, value in state.items()}, weights_file)
    with pytest.raises(UserError, match=rf"begun with other weights: model's {name} \(stored \w+, new \w+\); use"):
        train(config, folder, resume=True)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    weights_file.write_bytes(good)
    (model / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant that is not loaded")
    train(config, folder, resume=True)
    assert load_run(folder).done


@pytest.mark.parametrize("part", ["model", "adapter"])
def test_a_finished_run_of_other_weights_is_refused(config, tmp_path, tiny_model, part):
    """Though nothing is left to train: what it holds is of other weights than those that were given."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = dataclasses.replace(config, model=str(model), epochs=1)
    if part == "adapter":
        first = folder_of(tmp_path / "first", config)
        train(config, first)
        config = dataclasses.replace(config, adapter=str(shutil.copytree(first / "adapter", tmp_path / "lora")))
    folder = folder_of(tmp_path / "runs", config)
    train(config, folder, keep=True)
    (weights_file,) = (tmp_path / "lora" if part == "adapter" else model / "unet").glob("*.safetensors")
    good, state = weights_file.read_bytes(), load_file(weights_file)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    save_file({key: value * 1.01 for key, value in state.items()}, weights_file)
    name = rf"{part}'s (unet/)?{weights_file.name} \(stored \w+, new \w+\); use those, or .* --label or --out"
    for keep in (True, False):
        with pytest.raises(UserError, match=f"begun with other weights: {name}"):
            train(config, folder, resume=True, keep=keep)
        assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    weights_file.unlink()
    with pytest.raises(UserError, match=r"stored \w+, new none"):
        train(config, folder, resume=True, keep=True)
    weights_file.write_bytes(good)
    train(config, folder, resume=True, keep=True)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_digests_of_an_adapter_and_of_hub_models(config, tmp_path, monkeypatch):
    from huggingface_hub import constants

    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "a.safetensors").write_bytes(b"weights")
    expected = {"a.safetensors": hashlib.sha256(b"weights").hexdigest()}
    for path in (tmp_path / "lora", tmp_path / "lora" / "a.safetensors"):
        assert weights_of(dataclasses.replace(config, adapter=str(path)))["adapter"] == expected
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123")
    commit = "0f" * 20
    hub = dataclasses.replace(config, model="owner/name", adapter=f"owner/name/file.safetensors@{commit}")
    assert weights_of(hub) == {"model": {"commit": "abc123"}, "adapter": {"commit": commit}}
    assert weights_of(hub, local=True) == {}
    # Names that the cache does not know are no commits, and say nothing about what is the same.
    unknown = dataclasses.replace(config, model="owner/other", adapter="owner/other/file.safetensors@branch")
    assert weights_of(unknown) == {"model": {"commit": None}, "adapter": {"commit": None}}
    for nothing in (None, "None"):  # the text is an earlier version's
        assert changed({"model": {"commit": nothing}}, {"model": {"commit": "abc"}}) == []
        assert changed({"model": {"commit": "abc"}}, {"model": {"commit": nothing}}) == []
    assert changed({"model": {"commit": "abc"}}, {"model": {"commit": "def"}}) == [
        "model's commit (stored abc, new def)"
    ]


def test_deleted_weights_are_made_again_from_the_checkpoint(config, tmp_path):
    folder = folder_of(tmp_path, config)
    train(config, folder, keep=True)
    saved = load_file(next((folder / "adapter").glob("*.safetensors")))
    before = without_seconds(load_run(folder))
    shutil.rmtree(folder / "adapter")
    train(config, folder, resume=True)
    again = load_file(next((folder / "adapter").glob("*.safetensors")))
    assert all(torch.equal(again[k], saved[k]) for k in saved)
    assert without_seconds(load_run(folder)) == before
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("change", "named", "silent"),
    [
        ({"learning_rate": 1e-4}, ["--learning-rate (0.0001)"], ["--dtype"]),
        ({"dtype": "float16", "learning_rate": 1e-4}, ["--dtype bfloat16 or float32"], ["--learning-rate"]),
        ({"options": {"gamma": 0.5}}, ["--options gamma 0.5", "--learning-rate (0.003)"], ["--weight-decay"]),
        ({"weight_decay": 500.0, "learning_rate": 1e-4}, ["--weight-decay (500)"], ["--learning-rate"]),
    ],
)
def test_the_causes_of_a_divergence_that_apply_are_named(config, change, named, silent):
    text = likely_causes(dataclasses.replace(config, **change))
    assert all(part in text for part in named)
    assert not any(part in text for part in silent)


def test_saved_weights_load_in_plain_diffusers(config, tmp_path, tiny_model):
    for finetune, rank, alpha in (("lora", 4, 4), ("lora", 8, 4), ("full", 4, 4)):
        c = dataclasses.replace(config, finetune=finetune, lora_rank=rank, lora_alpha=alpha, epochs=1)
        policy = load_policy(c)
        trainer = Trainer(c, policy, load_reward(c.reward))
        trainer.train_epoch(1).to_row()
        saved = tmp_path / f"{finetune}{rank}"
        policy.save(saved)
        if finetune == "lora":
            plain = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
            plain.load_lora_weights(saved)
        else:
            plain = StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)
        arguments = (
            sdpo_kernels.normal(torch.arange(16), policy.latent_shape),
            torch.full((16,), 700),
            policy.encode(["dog"] * 16),
        )
        with torch.no_grad():
            assert torch.equal(plain.unet.eval()(*arguments[:2], *arguments[2]).sample, policy.predict(*arguments))
        # and in a policy of our own, with the same pictures
        again = load_policy(c)
        again.load(saved)
        assert torch.equal(pictures(again, ["cat"], [0], 2, c), pictures(policy, ["cat"], [0], 2, c))


def test_divergence_stops_the_run_and_keeps_its_checkpoint(config, tmp_path, monkeypatch):
    folder = folder_of(tmp_path, config)
    original = Trainer.score

    def break_weights(self, latents, prompts):
        if self.counts.samples:  # in the second epoch
            with torch.no_grad():
                self.policy.parameters[0].fill_(torch.nan)
        return original(self, latents, prompts)

    monkeypatch.setattr(Trainer, "score", break_weights)
    with pytest.raises(TrainingDiverged, match=r"epoch 2.*--learning-rate"):
        train(config, folder)
    assert [row["epoch"] for row in load_run(folder).train] == [1]
    monkeypatch.undo()
    train(config, folder, resume=True)
    assert load_run(folder).done["epochs"] == 3


def test_a_reward_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch):
    from sdpo_bench.rewards.colourfulness import Colourfulness

    monkeypatch.setattr(Colourfulness, "__call__", lambda self, images, prompts: torch.full((len(images),), torch.nan))
    with pytest.raises(UserError, match="colourfulness gave a value that is not finite"):
        train(config, folder_of(tmp_path, config))


def test_foreign_and_damaged_files_are_named_and_kept(config, tmp_path):
    folder = folder_of(tmp_path, config)
    with pytest.raises(Stop):
        train(config, folder, on_epoch=stop_at(2, "train"))
    with pytest.raises(UserError, match="already holds a run; continue with --resume"):
        train(config, folder)
    checkpoint = folder / "checkpoint.pt"
    good = checkpoint.read_bytes()
    for bad in (good[: len(good) // 2], b"", b"nonsense"):
        checkpoint.write_bytes(bad)
        with pytest.raises(UserError, match=r"checkpoint\.pt can't be read"):
            train(config, folder, resume=True)
        assert checkpoint.read_bytes() == bad
    checkpoint.write_bytes(good)
    other = dataclasses.replace(config, seed=5)
    elsewhere = folder_of(tmp_path, other)
    elsewhere.mkdir()
    shutil.copy(checkpoint, elsewhere)
    with pytest.raises(UserError, match="belongs to run"):
        train(other, elsewhere, resume=True)
    shutil.rmtree(elsewhere)
    shutil.copytree(folder, elsewhere)
    (elsewhere / "checkpoint.pt").unlink()
    with pytest.raises(RecordError, match="another configuration"):
        train(other, elsewhere, resume=True)
    train(config, folder, resume=True)
    assert load_run(folder).done


def test_a_run_that_another_process_finishes_meanwhile_is_left_alone(config, tmp_path, monkeypatch):
    folder = folder_of(tmp_path, config)

    def slow(c):
        monkeypatch.undo()
        train(config, folder)  # the other process, while this one loads
        return load_policy(c)

    for resume in (True, False):
        shutil.rmtree(folder, ignore_errors=True)
        monkeypatch.setattr("sdpo_bench.training.loop.load_policy", slow)
        if resume:
            train(config, folder, resume=True)
        else:
            with pytest.raises(UserError, match="already holds a run"):
                train(config, folder)
        assert load_run(folder).done["epochs"] == 3


def test_start_run(config, tmp_path):
    c = dataclasses.replace(config, epochs=0, label="")
    folder = folder_of(tmp_path, c)
    train(c, folder)
    record = load_run(folder)
    assert record.label == "pretrained"
    assert record.config["method"] == {"name": "start"}
    assert {row["epoch"] for row in record.eval} == {0}
    assert (folder / "grid_before.png").exists()


def test_what_cannot_be_trained_is_refused_before_anything_is_written(config, tmp_path):
    robots = tmp_path / "robots"
    robots.write_text("a robot\n")
    for change, message in (
        ({"eta": 0.0}, "sigma = 0"),
        ({"model": str(tmp_path)}, "model_index.json does not exist"),
        ({"eval_rewards": ("alignment",), "prompts": str(robots)}, "knows only its 45 animals, not .'a robot'"),
        ({"eval_steps": (2000,)}, "expected 1 to 1000"),
        ({"eval_splits": ("tuning",)}, "no prompts to evaluate"),
    ):
        c = dataclasses.replace(config, **change)
        with pytest.raises(UserError, match=message):
            train(c, folder_of(tmp_path / "out", c))
    assert not (tmp_path / "out").exists()
    for change, message in (
        ({"steps": 1}, "--steps is 1"),
        ({"steps": 0}, "--steps is 0"),
        ({"method": "ppo"}, "unknown method"),
        ({"reward": "beauty"}, "unknown reward 'beauty'"),
        ({"options": {"beta": 1.0}}, "unknown option 'beta' of sdpo"),
        ({"learning_rate": 0.0}, "--learning-rate is 0"),
        ({"pairs_per_update": 3}, "multiple of --pairs-per-update"),
        ({"eval_steps": ()}, "--eval-steps"),
        ({"eval_seed": -1}, "--eval-seed is -1"),
        ({"eval_seed": 2**64}, r"--eval-seed is 18446744073709551616; expected 0 to 2\^64 - 1"),
        ({"seed": 2**64}, "--seed is 18446744073709551616; expected 0 to"),
        ({"label": "x" * 300}, "--label has 300 letters; expected at most 100"),
        ({"reward": "+".join(["0.125*colourfulness"] * 20)}, "--reward"),
        ({"weight_decay": -1.0}, "--weight-decay is -1"),
        ({"weight_decay": float("nan")}, "--weight-decay is nan"),
        ({"eta": 5.0}, "--eta is 5"),
        ({"label": "start"}, "--label start"),
        ({"method": "d3po", "label": "", "options": {"ratio_clip": 1.0}}, "ratio_clip"),
        ({"method": "prdp", "label": "", "options": {"beta": 0.0}}, "beta of prdp is 0"),
        ({"options": {"scale": 0.0}}, "scale of sdpo is 0"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(config, **change)


def test_a_forced_backend_is_refused_where_latents_are_offloaded(config):
    """Here, and not by the first trajectory, in the thread that scores. As if the policy's device were a GPU: its own
    check was passed."""
    offloading = dataclasses.replace(config, offload_trajectories=True)
    policy, reward = load_policy(offloading), load_reward(config.reward)
    with sdpo_kernels.backend("triton"):
        for changes in ({"dense": "anchored"}, {"dense": "linear"}, {"dense": "exact", "probe_every": 1}):
            with pytest.raises(UserError, match=r"--offload-trajectories keeps latents on the cpu.*choose 'auto'"):
                Trainer(dataclasses.replace(offloading, **changes), policy, reward)
        # These compare no latents by a kernel.
        for changes in ({"dense": "exact"}, {"method": "ddpo"}):
            Trainer(dataclasses.replace(offloading, **changes), policy, reward)
    Trainer(offloading, policy, reward)


def test_damaged_model_folder_is_named(config, tmp_path, tiny_model):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    next((broken / "unet").glob("*.safetensors")).write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"broken: unet/.* can't be loaded.*check that the folder is complete"):
        load_policy(dataclasses.replace(config, model=str(broken)))
    assert isinstance(load_policy(config).denoiser, UNet2DConditionModel)


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU: reading a value, or sizes that depend on values."""

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        name = function.overloadpacket.__name__
        data = [x for x in tree_leaves((arguments, kwargs)) if isinstance(x, torch.Tensor)]
        assert name != "_local_scalar_dense", "a value is read"
        if name in ("nonzero", "_unique2", "index", "index_put_"):  # of indices, which the host has, but of no data
            assert not any(x.is_floating_point() for x in data) or not any(x.dtype == torch.bool for x in data), name
        return function(*arguments, **(kwargs or {}))


# A reward checks its scores, which makes the host wait.
@pytest.mark.parametrize("name", [name for name in METHODS if build_method(name).reward_gradient(3) is None])
def test_updates_read_nothing_from_the_device(config, name):
    trainer = trainer_of(dataclasses.replace(config, method=name, label=""))
    trajectory = trainer.sample(trainer.plan(1))
    advantages = sdpo_kernels.normal(torch.arange(4), (trainer.config.samples_per_group, 3))
    reference = trainer.reference_log_prob(trajectory) if trainer.method.reference else None
    trainer.optimiser.step = lambda: None  # its count of steps lies on the host
    groups = trainer.optimizer_batches(trainer.plan(1))
    with NoWaiting():
        row = trainer.update(groups[0], trajectory, advantages, reference)
        with pytest.raises(AssertionError, match="a value is read"):
            row[0].item()
