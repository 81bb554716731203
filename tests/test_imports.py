"""Imports go one way through the package, from `cli` down to `errors`, without a cycle; its root stays small.

Every import statement counts, also one within a function: that puts loading off, it does not turn the direction round.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
NAME = "sdpo_bench"

LAYERS = (
    {"errors", "terminal", "types"},
    {"interruption", "plugins", "prompts"},
    {"catalogue"},
    {"distributed", "records"},
    {"dense_rewards", "methods", "rewards"},
    {"config"},
    {"analysis", "policies"},
    {"training"},
    {"experiments"},
    {"api"},
    {"cli", "testbed"},
    {"__main__"},
)
"""Modules and folders at the package's root, lowest first: a part imports from itself and from lower layers."""
ONLY = {"analysis": {"analysis", "catalogue", "errors", "prompts", "records", "terminal"}}
"""Parts that import less than their layer would let them: tables come from records alone, without training."""
WITHOUT_TORCH = {"analysis"}
HEAVY = {"accelerate", "diffusers", "peft", "sdpo_kernels", "torch", "transformers"}
ROOT_MODULES = 10  # at most, __init__ and __main__ among them: what is more has a folder that it belongs to


class Import(NamedTuple):
    path: Path
    line: int
    module: str  # that is imported, dotted


def module_name(path: Path, package: Path) -> str:
    parts = (package.name, *path.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, package: Path) -> Iterator[Import]:
    """Every import statement of a file; of `from a.b import c` it is a.b.c where that is a module, else a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module_name(path, package).split(".")
                up = node.level - (path.name == "__init__.py")
                base = ".".join([*here[: len(here) - up], *base.split(".")]).rstrip(".")
            folder = package.parent.joinpath(*base.split("."))
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").is_file() or (folder / alias.name).is_dir()
                yield Import(path, node.lineno, f"{base}.{alias.name}" if is_module else base)


def all_imports(package: Path) -> Iterator[Import]:
    for path in sorted(package.rglob("*.py")):
        yield from imports(path, package)


def part_of(module: str) -> str:
    """The first name below the package: `records` of sdpo_bench.records.plan."""
    return [*module.split("."), "__init__"][1]


def broken_rule(importer: str, imported: str) -> str | None:
    """The rule that an import of one part by another breaks, in words."""
    layer = {part: level for level, parts in enumerate(LAYERS) for part in parts}
    if importer == imported or imported == "__init__":  # the version alone: see test_public_names
        return None
    for part in (importer, imported):
        if part not in layer:
            return f"{part} is in no layer: say in LAYERS where it belongs"
    if imported not in ONLY.get(importer, {imported}):
        return f"{importer} imports from {', '.join(sorted(ONLY[importer]))} only"
    if layer[imported] == layer[importer]:
        return f"{importer} and {imported} are of one layer, and do not know each other"
    return f"{imported} lies above {importer}" if layer[imported] > layer[importer] else None


def violations(package: Path) -> list[str]:
    """`file:line: rule` of each import that goes the wrong way."""
    found = []
    for path, line, module in all_imports(package):
        importer, top = part_of(module_name(path, package)), module.split(".")[0]
        rule = broken_rule(importer, part_of(module)) if top == package.name else None
        if importer in WITHOUT_TORCH and top in HEAVY:
            rule = f"{importer} loads no {top}: it reads records"
        if top in ("benchmarks", "support", "tests"):
            rule = f"{top} are no part of the package"
        if rule:
            found.append(f"{path.relative_to(package.parent)}:{line}: {rule}")
    return found


def cycle(package: Path) -> list[str]:
    """Modules that import each other in a ring, the first one again at the end; empty where there is no ring."""
    graph: dict[str, set[str]] = {}
    for path, _, module in all_imports(package):
        importer = module_name(path, package)
        if module.split(".")[0] == package.name and module not in (importer, package.name):
            graph.setdefault(importer, set()).add(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_imports_go_one_way():
    assert not violations(ROOT / NAME)


def test_no_cycles():
    assert not cycle(ROOT / NAME)


def test_public_names_are_for_users():
    """Within the package a name is imported from the module that it is of: the short form hides the direction."""
    short = [f"{i.path.relative_to(ROOT)}:{i.line}" for i in all_imports(ROOT / NAME) if i.module == NAME]
    version = [where for where in short if "import __version__" in _line(where)]
    assert short == version


def _line(where: str) -> str:
    path, line = where.split(":")
    return (ROOT / path).read_text().splitlines()[int(line) - 1]


def test_the_root_is_small():
    modules = sorted(path.stem for path in (ROOT / NAME).glob("*.py"))
    assert len(modules) <= ROOT_MODULES, modules


def test_the_kernels_stand_alone():
    package = ROOT / "kernels" / "sdpo_kernels"
    known = {i.module.split(".")[0] for i in all_imports(package)}
    assert "torch" in known
    assert NAME not in known


def write(root: Path, files: dict[str, str]) -> Path:
    """A package of these files, by their names in it, beside some that do nothing."""
    package = root / NAME
    for name, text in ({"__init__.py": "", "terminal.py": "", "records/plan.py": "x = 1\n"} | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


@pytest.mark.parametrize(
    ("file", "text", "rule"),
    [
        ("training/a.py", "\nfrom sdpo_bench.cli import main\n", "a.py:2: cli lies above training"),
        ("training/a.py", "def f():\n    from sdpo_bench.cli.main import x\n", "a.py:2: cli lies above training"),
        ("training/a.py", "def f():\n    import sdpo_bench.cli.main\n", "a.py:2: cli lies above training"),
        ("training/a.py", "from ..cli import main\n", "a.py:1: cli lies above training"),
        ("errors.py", "from sdpo_bench import terminal\n", "errors.py:1: errors and terminal are of one layer"),
        ("rewards/a.py", "from sdpo_bench.testbed.model import x\n", "a.py:1: testbed lies above rewards"),
        ("cli/a.py", "from sdpo_bench.testbed.model import x\n", "a.py:1: cli and testbed are of one layer"),
        ("analysis/a.py", "from sdpo_bench.config import X\n", "a.py:1: analysis imports from analysis, catalogue"),
        ("analysis/b/a.py", "if 1:\n    import torch.nn\n", "b/a.py:2: analysis loads no torch"),
        ("cli/a.py", "import tests.support\n", "a.py:1: tests are no part of the package"),
        ("extra.py", "import sdpo_bench.errors\n", "extra.py:1: extra is in no layer: say in LAYERS"),
    ],
)
def test_a_violation_names_file_line_and_rule(tmp_path, file, text, rule):
    (found,) = violations(write(tmp_path, {file: text}))
    assert rule in found
    assert found.startswith(f"{NAME}/")


def test_what_is_allowed(tmp_path):
    files = {
        "__main__.py": "from sdpo_bench.cli.main import main\n",
        "cli/main.py": "import json\nfrom sdpo_bench import __version__\nfrom sdpo_bench.records import plan\n",
        "analysis/a.py": "from sdpo_bench.analysis.b import x\nfrom sdpo_bench.records import plan\n",
        "analysis/b.py": "import pandas\n",
    }
    package = write(tmp_path, files)
    assert violations(package) == []
    assert cycle(package) == []


def test_a_cycle_is_found(tmp_path):
    """Also through a function, and through a package's __init__."""
    files = {
        "records/a.py": "from sdpo_bench.records import b\n",
        "records/b.py": "def f():\n    from sdpo_bench.records.c import x\n",
        "records/c.py": "from .a import y\n",
    }
    ring = cycle(write(tmp_path / "first", files))
    assert ring[0] == ring[-1]
    assert set(ring) == {f"{NAME}.records.{name}" for name in "abc"}
    files = {"records/__init__.py": "from .a import x\n", "records/a.py": "from sdpo_bench.records import x\n"}
    assert set(cycle(write(tmp_path / "second", files))) == {f"{NAME}.records", f"{NAME}.records.a"}
