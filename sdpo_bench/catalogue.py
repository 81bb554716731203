"""Lists the methods, dense rewards and samplers without PyTorch.

A method's or a dense reward's own file is the one place that says what it is called and how it looks. Those files
import PyTorch, which --help, records and tables do without: here the plain values that their classes begin with are
read from the files' text. Where the classes themselves are wanted, `classes` finds them.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

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
    wanted = {f.name for f in fields(kind)}
    found = []
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
            if isinstance(node, ast.ClassDef):
                values = {key: value for key, value in _values(node) if key in wanted}
                if "name" in values:
                    found.append(kind(**values))
    return tuple(sorted(found, key=lambda entry: entry.sort_key))


def _values(node: ast.ClassDef) -> Iterable[tuple[str, Any]]:
    """The names and values of assigned constants in a class's body."""
    for line in node.body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            name, value = line.targets[0].id, line.value
        elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            name, value = line.target.id, line.value
        else:
            continue
        if isinstance(value, ast.Constant):
            yield name, value.value


def classes(package: str, path: Iterable[str], base: type[T], own: str = "name") -> list[type[T]]:
    """The subclasses of `base` in the modules of a package that define `own` themselves, sorted by module."""
    found: dict[type[T], None] = {}
    for info in sorted(pkgutil.iter_modules(path), key=lambda info: info.name):
        for value in vars(importlib.import_module(f"{package}.{info.name}")).values():
            if isinstance(value, type) and issubclass(value, base) and own in vars(value):
                found[value] = None
    return list(found)


PACKAGE = Path(__file__).parent
METHODS = declared(PACKAGE / "methods", Entry)
DENSE_REWARDS = declared(PACKAGE / "dense_rewards", DenseReward)
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
    "tcd": "that of trajectory consistency distillation (arXiv 2402.19159), with noise by --noise-level",
}
