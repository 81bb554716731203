"""Lists the methods, dense rewards and samplers without PyTorch, those of plug-ins among them.

A method's or a dense reward's own file is the one place that says what it is called and how it looks. Those files
import PyTorch, which --help, records and tables do without: here the plain values that their classes begin with are
read from the files' text. Where the classes themselves are wanted, a `Registry` finds them with `classes`.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from sdpo_bench import plugins
from sdpo_bench.plugins.declared import values_of

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """The attributes of a class. `row`: its place in tables and legends; None puts it after the others, by name.
    `colour` and `marker`: matplotlib's; "" takes spare ones."""

    name: str
    title: str = ""
    row: int | None = None
    colour: str = ""
    marker: str = ""

    @property
    def sort_key(self) -> tuple[bool, int, str]:
        return (self.row is None, self.row or 0, self.name)


@dataclass(frozen=True)
class DenseReward(Entry):
    """`budget`: its name in dense.jsonl; "" if its accuracy is not measured. See dense_rewards/."""

    meaning: str = ""
    queries: int | None = None
    budget: str = ""


E = TypeVar("E", bound=Entry)


def declared(folder: Path, kind: type[E]) -> tuple[E, ...]:
    """Entries for the classes in the files of `folder` that have a `name`, from the plain values in their bodies, in
    the order of their rows."""
    files = [ast.parse(path.read_text("utf-8"), str(path)) for path in sorted(folder.glob("*.py"))]
    nodes = [node for file in files for node in file.body if isinstance(node, ast.ClassDef)]
    return _entries(map(dict, map(values_of, nodes)), kind)


def _entries(classes: Iterable[Mapping[str, Any]], kind: type[E]) -> tuple[E, ...]:
    """Entries for those of these classes' values that have a `name`, in the order of their rows."""
    wanted = {f.name for f in fields(kind)}
    found = [kind(**{k: v for k, v in values.items() if k in wanted}) for values in classes if "name" in values]
    return tuple(sorted(found, key=lambda entry: entry.sort_key))


def _with_plugins(folder: str, kind: type[E]) -> tuple[E, ...]:
    """Entries for the classes in one of the package's folders, and for those of plug-ins."""
    given = [each.values for plugin in plugins.found() for each in plugin.classes if each.kind == folder]
    own = declared(PACKAGE / folder, kind)
    return tuple(sorted((*own, *_entries(given, kind)), key=lambda entry: entry.sort_key))


def classes(package: str, path: Iterable[str], base: type[T], own: str = "name") -> list[type[T]]:
    """The subclasses of `base` in the modules of a package that define `own` themselves, sorted by module; then those
    of plug-ins. UserError for a plug-in that can't be used."""
    plugins.check()  # before PyTorch is imported
    found: dict[type[T], None] = {}
    for info in sorted(pkgutil.iter_modules(path), key=lambda info: info.name):
        for value in vars(importlib.import_module(f"{package}.{info.name}")).values():
            if isinstance(value, type) and issubclass(value, base) and own in vars(value):
                found[value] = None
    return [*found, *plugins.classes(package.rpartition(".")[2], base)]


class Registry(MutableMapping[str, T]):
    """Classes by name, found when the first one is asked for: a plug-in may import the package that finds it."""

    def __init__(self, find: Callable[[], Mapping[str, T]]) -> None:
        self._find = find

    @cached_property
    def _found(self) -> dict[str, T]:
        return dict(self._find())

    def __getitem__(self, name: str) -> T:
        return self._found[name]

    def __setitem__(self, name: str, value: T) -> None:
        self._found[name] = value

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


PACKAGE = Path(__file__).parent
METHODS = _with_plugins("methods", Entry)
DENSE_REWARDS = _with_plugins("dense_rewards", DenseReward)
BUDGETS = {entry.budget: entry for entry in DENSE_REWARDS if entry.budget}
"""The dense rewards whose accuracy is measured, by their names in dense.jsonl, in the order of its rows."""
SAMPLERS = {
    "auto": "ddim for Stable Diffusion kinds [official], flow_sde for flow-matching ones",
    "dance_sde": "DanceGRPO's SDE of a flow-matching model (arXiv 2505.07818), with noise by --noise-level",
    "ddim": "DDIM, with noise by --eta",
    "euler_ancestral": "Euler ancestral, with its scheduler's noise",
    "flow_cps": "a flow-matching model's steps with exactly the noise of their timesteps (arXiv 2509.05952); "
    "--noise-level sets how much of it is new",
    "flow_sde": "Flow-GRPO's SDE of a flow-matching model (arXiv 2505.05470), with noise by --noise-level",
    "lcm": "the multistep sampler of latent consistency models",
    "scm": "the multistep sampler of TrigFlow's consistency models (arXiv 2410.11081), such as SANA-Sprint",
    "tcd": "that of trajectory consistency distillation (arXiv 2402.19159), with noise by --noise-level",
}
