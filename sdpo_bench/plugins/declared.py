"""Reads what classes say of themselves from the text of a Python file, without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = {
    "methods": ("method", "name"),
    "rewards": ("reward", "name"),
    "dense_rewards": ("dense reward", "name"),
    "policies": ("policy", "pipeline_class"),
}
"""The folders of the package to which plug-ins add: the kind of class in words, and the attribute that names it."""


@dataclass(frozen=True)
class Declared:
    """A class of one of KINDS. `values`: the plain values in its body; of a pipeline's class its name."""

    kind: str
    values: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.values[KINDS[self.kind][1]])

    def __str__(self) -> str:
        return f"{KINDS[self.kind][0]} {self.name}"


def values_of(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """The names and values of assigned constants in a class's body; of an assigned name or attribute its last part."""
    for line in node.body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            name, value = line.targets[0].id, line.value
        elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            name, value = line.target.id, line.value
        else:
            continue
        if isinstance(value, ast.Constant):
            yield name, value.value
        elif name == "pipeline_class" and isinstance(value, ast.Name | ast.Attribute):
            yield name, ast.unparse(value).rpartition(".")[2]


def declared_in(path: Path) -> tuple[Declared, ...]:
    """The classes of KINDS that a file names. A class's kind is that of its first base that the file imports from
    `sdpo_bench.KIND`, or defines itself."""
    kinds: dict[str, str] = {}  # by the names that the file gives to classes
    found = []
    for node in ast.parse(path.read_text("utf-8"), path.name).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sdpo_bench."):
            kind = f"{node.module}".split(".")[1]
            kinds |= {alias.asname or alias.name: kind for alias in node.names if kind in KINDS}
        elif isinstance(node, ast.ClassDef):
            bases = [kinds[base] for base in map(ast.unparse, node.bases) if base in kinds]
            if bases:
                kinds[node.name] = bases[0]
                values = dict(values_of(node))
                if KINDS[bases[0]][1] in values:
                    found.append(Declared(bases[0], values))
    return tuple(found)
