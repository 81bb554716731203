"""The rewards: one file each, found in this folder and loaded on demand.

A reward is a class with `name`, `title`, `licence`, `revision`, `scale`. Called with images float [N, 3, H, W] in 0..1
and N prompts, it returns float32 [N]; higher is better. With `differentiable` its `differentiable_score` returns the
same with a gradient by the images. `REWARDS` need only this package. `PRETRAINED` read published weights when
constructed (docs/rewards.md), and import transformers only then. `EXTERNAL` need a server or a library.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

import torch

from sdpo_bench import catalogue
from sdpo_bench.errors import UnknownName, UserError
from sdpo_bench.rewards._spec import Term, parse
from sdpo_bench.rewards._torch_state import unchanged_torch
from sdpo_bench.rewards._weights import MissingWeights
from sdpo_bench.rewards.base import Pretrained, Reward, WeightedSum
from sdpo_bench.rewards.http import HTTP


@functools.cache
def _classes() -> dict[str, type[Reward]]:
    return dict(sorted((cls.name, cls) for cls in catalogue.classes(__name__, __path__, Reward)))


REWARDS: catalogue.Registry[type[Reward]] = catalogue.Registry(
    lambda: {name: cls for name, cls in _classes().items() if not issubclass(cls, Pretrained) and not cls.needs}
)
PRETRAINED: catalogue.Registry[type[Pretrained]] = catalogue.Registry(
    lambda: {name: cls for name, cls in _classes().items() if issubclass(cls, Pretrained)}
)
EXTERNAL: catalogue.Registry[type[Reward]] = catalogue.Registry(
    lambda: {name: cls for name, cls in _classes().items() if cls.needs}
)


def differentiable() -> list[str]:
    """Names of the rewards that have a gradient by the pictures."""
    return [name for known in (REWARDS, PRETRAINED, EXTERNAL) for name, cls in known.items() if cls.differentiable]


def names(specs: Iterable[str]) -> list[str]:
    """The names of the rewards in these specs, each once."""
    return list(dict.fromkeys(term.name for spec in specs for term in _terms(spec)))


def canonical(spec: str, *, optimised: bool = False) -> str:
    """The standard spelling of a spec, for records and run ids. Loads nothing. UserError lists the valid names, or says
    that a reward to be `optimised` can only be measured."""
    terms = _terms(spec)
    if optimised and (measured := _measured([spec])):
        raise UserError(f"{measured[0]} can be measured but not trained on; use it with --eval-rewards")
    return "+".join(map(str, terms))


def not_differentiable(spec: str) -> list[str]:
    """The names of those rewards of a spec that have no gradient by the pictures. Loads nothing."""
    return list(dict.fromkeys(term.name for term in _terms(spec) if term.name not in differentiable()))


def load_reward(
    spec: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, batch_size: int = 32
) -> Reward:
    """Loads the reward of a spec such as `alignment`, `hpsv2.1`, `imagereward:published`, `pickscore@REVISION`,
    `0.5*pickscore+0.5*aesthetic`. Its `name` is the spec in its standard spelling, for records.

    Device, dtype (float16 or float32) and batch size (pictures in one forward pass) are for networks with published
    weights; the others ignore them. UserError lists the valid names, or says what is lacking and where to get it."""
    (reward,) = load_rewards([spec], device=device, dtype=dtype, batch_size=batch_size).values()
    return reward


def load_rewards(
    specs: Iterable[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 32,
) -> dict[str, Reward]:
    """Calls `load_reward` for each spec; returns rewards by canonical name. A network that several of them need is
    loaded once."""
    with unchanged_torch():
        return _load(specs, device, dtype, batch_size)


def _load(specs: Iterable[str], device: str | torch.device, dtype: torch.dtype, batch_size: int) -> dict[str, Reward]:
    chosen = {canonical(spec): _terms(spec) for spec in specs}
    loaded: dict[str, Reward] = {}
    for term in [term for terms in chosen.values() for term in terms]:
        if term.label in loaded:
            continue
        if term.name in REWARDS:
            loaded[term.label] = REWARDS[term.name]()
            continue
        if term.name in EXTERNAL:
            loaded[term.label] = _external(term, batch_size)
            continue
        cls, published, revision = PRETRAINED[term.name], term.published, term.revision
        try:
            loaded[term.label] = cls(
                published=published, revision=revision, device=device, dtype=dtype, batch_size=batch_size
            )
        except MissingWeights as error:
            raise UserError(f"{error}. Rewards that need no weights: {', '.join(REWARDS)}") from error
    return {
        name: loaded[name] if name in loaded else WeightedSum([(term, loaded[term.label]) for term in terms])
        for name, terms in chosen.items()
    }


def _external(term: Term, batch_size: int = 32) -> Reward:
    cls = EXTERNAL[term.name]
    return cls(term.revision, batch_size) if issubclass(cls, HTTP) else cls()


def find_weights(specs: Iterable[str]) -> None:
    """Finds or fetches every file that these rewards read, without reading weights, and asks servers whether they are
    there. UserError says what is missing and where to get it."""
    for term in {term.label: term for spec in specs for term in _terms(spec)}.values():
        if term.name in PRETRAINED:
            PRETRAINED[term.name].files_only()(revision=term.revision)
        elif term.name in EXTERNAL:
            _external(term)


def check_noises(specs: Iterable[str], last: int, interim: int) -> None:
    """UserError where one of these rewards can't be measured with so many noises of a prompt in the last evaluation,
    and so many in those before."""
    for name in _measured(specs):
        REWARDS[name].check_noises(last, interim)


def need_start(specs: Iterable[str]) -> bool:
    """Whether one of these rewards compares with the pretrained model's pictures."""
    return any(REWARDS[name].needs_start for name in _measured(specs))


def _measured(specs: Iterable[str]) -> list[str]:
    """The names of those that can't be optimised."""
    return sorted(name for name in names(specs) if name in REWARDS and not REWARDS[name].optimisable)


def network_bytes(specs: Iterable[str], dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the networks of these rewards, by name, computed from their architecture. Only for published weights."""
    return {name: PRETRAINED[name].network_bytes(dtype) for name in names(specs) if name in PRETRAINED}


def _terms(spec: str) -> list[Term]:
    """The terms of a spec, checked; a published scale that is the same as the raw one is left out."""
    terms = parse(spec)
    for term in terms:
        _check(term)
    return [
        replace(term, published=False) if term.published and not PRETRAINED[term.name].published_scale else term
        for term in terms
    ]


def _check(term: Term) -> None:
    if term.name not in {*REWARDS, *PRETRAINED, *EXTERNAL}:
        raise UnknownName(
            term.name,
            f"unknown reward {term.name!r}; choose one of: {', '.join(REWARDS)}; or with published weights: "
            f"{', '.join(PRETRAINED)}; or with a server or a library: {', '.join(EXTERNAL)}",
        )
    served = term.name in EXTERNAL and issubclass(EXTERNAL[term.name], HTTP)
    if served and (term.published or not term.revision):
        raise UserError(f"reward {term.label}: expected {term.name}@NAME, the name of a server (docs/rewards.md)")
    if term.name not in PRETRAINED and not served and (term.published or term.revision):
        raise UserError(f"reward {term.name} has one scale and no revisions to choose from; write {term.name}")


__all__ = [
    "EXTERNAL",
    "PRETRAINED",
    "REWARDS",
    "Reward",
    "canonical",
    "check_noises",
    "differentiable",
    "find_weights",
    "load_reward",
    "load_rewards",
    "names",
    "need_start",
    "network_bytes",
    "not_differentiable",
]
