"""Methods, rewards, dense rewards and policies from outside the package.

A plug-in is a Python file with such classes. An installed distribution names it as a module, in an entry point of the
group `sdpo_bench.methods`, `sdpo_bench.rewards`, `sdpo_bench.dense_rewards` or `sdpo_bench.policies`. A user gives a
file or a module with `--plugin`, or in the environment variable SDPO_BENCH_PLUGINS, which worker processes inherit.

Plug-ins are found once, when sdpo_bench/catalogue.py is first imported, and only their text is read then: tables need
no PyTorch, and a broken one ends no command that does without it. `load` imports them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from sdpo_bench.errors import UserError
from sdpo_bench.plugins.declared import KINDS, Declared, declared_in

VARIABLE = "SDPO_BENCH_PLUGINS"
"""Environment variable: plug-ins as `--plugin` takes them, separated like the folders of PATH."""
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Plugin:
    """`source`: its module, or the name of its file. `distribution`: name and version of the one that has it as an
    entry point. `problem`: why it can't be used, or ""."""

    source: str
    module: str
    path: Path | None = None
    distribution: str = ""
    classes: tuple[Declared, ...] = ()
    problem: str = ""

    @property
    def title(self) -> str:
        return f"plug-in {self.source}" + (f" of {self.distribution}" if self.distribution else "")

    def record(self) -> dict[str, Any]:
        """Its entry in provenance.json."""
        assert self.path is not None
        gives: dict[str, list[str]] = {}
        for each in self.classes:
            gives.setdefault(each.kind, []).append(each.name)
        known = {"sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(), "gives": gives}
        return known | ({"distribution": self.distribution} if self.distribution else {})


def given() -> list[str]:
    """The files and modules in SDPO_BENCH_PLUGINS."""
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def use(more: Iterable[str]) -> None:
    """Adds plug-ins to those of SDPO_BENCH_PLUGINS, for this process and those that it starts. UserError if a file does
    not exist, or if the names that it would add to have been read."""
    names = given()
    for name in more:
        if os.pathsep in name:
            raise UserError(f"--plugin {name}: expected a file or a module, whose name has no {os.pathsep}")
        if is_file(name):
            path = Path(name).expanduser().absolute()
            if not path.is_file():
                raise UserError(f"--plugin {name}: there is no such file; expected a Python file, or a module's name")
            name = str(path)
        if name not in names:
            names.append(name)
    if names == given():
        return
    if found.cache_info().currsize:
        raise UserError(f"--plugin: plug-ins are found when sdpo_bench is first used; set {VARIABLE} before that")
    os.environ[VARIABLE] = os.pathsep.join(names)


def is_file(name: str) -> bool:
    """Whether a plug-in is given as a file, not as a module."""
    return name.endswith(".py") or os.sep in name


@functools.cache
def found() -> tuple[Plugin, ...]:
    """The plug-ins of this process: those of installed distributions, by name, then the given ones."""
    plugins = {plugin.module: plugin for plugin in map(_read, _installed())}
    for name in given():
        plugin = _file(Path(name)) if is_file(name) else Plugin(name, name, _find(name))
        plugins.setdefault(plugin.module, _read(plugin))
    return _without_clashes([*plugins.values()])


def check() -> None:
    """UserError if a plug-in can't be used as its text stands: it is not there, gives nothing, or a name twice."""
    for plugin in found():
        if plugin.problem:
            what = "repair or uninstall it" if plugin.distribution else "repair it, or leave it out"
            raise UserError(f"{plugin.title} {plugin.problem}; {what}")


def load() -> None:
    """Imports all. UserError if one can't be used."""
    check()
    for plugin in found():
        _module(plugin)


def classes(kind: str, base: type) -> list[type]:
    """The classes of one of KINDS in all plug-ins. UserError if a plug-in can't be used or imported."""
    check()
    return [each for plugin in found() for each in _classes(plugin, kind, base)]


def used(names: Collection[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """The records of those plug-ins that give one of these (kind, name), by their sources."""
    return {
        plugin.source: plugin.record()
        for plugin in found()
        if any((each.kind, each.name) in names for each in plugin.classes)
    }


def _installed() -> Iterable[Plugin]:
    """The plug-ins of installed distributions, sorted by module."""
    plugins: dict[str, Plugin] = {}
    for kind in KINDS:
        for point in importlib.metadata.entry_points(group=f"sdpo_bench.{kind}"):
            owner = f"{point.dist.name} {point.dist.version}" if point.dist else ""
            path = _find(point.module)
            plugins[point.module] = Plugin(point.module, point.module, path, owner)
            if point.attr:
                why = f"is {point.value} in an entry point; expected a module, without :{point.attr}"
                plugins[point.module] = replace(plugins[point.module], problem=why)
    return [plugins[module] for module in sorted(plugins)]


def _find(module: str) -> Path | None:
    """The file of a module, found without importing it or the packages that it is in."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:  # a module without a spec, such as __main__
        return None
    for count in range(1, len(rest) + 1):
        if spec is None:
            return None
        spec = PathFinder.find_spec(".".join([top, *rest[:count]]), spec.submodule_search_locations)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _file(path: Path) -> Plugin:
    """A plug-in that is given as a file. Its module has a name of its own, which no module that is installed has."""
    place = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return Plugin(path.name, f"sdpo_bench_plugin_{place}", path)


def _read(plugin: Plugin) -> Plugin:
    """With the classes in its text, or with a problem."""
    if plugin.problem:
        return plugin
    if plugin.path is None:
        return replace(plugin, problem="is no module that Python finds here")
    try:
        classes = declared_in(plugin.path)
    except (OSError, SyntaxError, ValueError) as error:
        return replace(plugin, problem=f"can't be read ({type(error).__name__}: {error})")
    if not classes:
        why = "has no class with a plain name whose base is imported `from sdpo_bench.methods...`, .rewards and so on"
        return replace(plugin, problem=why)
    return replace(plugin, classes=classes)


def _without_clashes(plugins: Collection[Plugin]) -> tuple[Plugin, ...]:
    """Plug-ins that give what the package or an earlier one has get a problem, and lose their classes."""
    if not plugins:
        return ()
    files = [path for kind in KINDS for path in sorted((PACKAGE / kind).glob("*.py"))]
    owners = {name: "the package" for path in files for each in declared_in(path) for name in _names(each)}
    checked = []
    for plugin in plugins:
        names = [name for each in plugin.classes for name in _names(each)]
        twice = [name for i, name in enumerate(names) if name in owners or name in names[:i]]
        if twice:
            why = f"gives the {twice[0]}, which {owners.get(twice[0], 'it')} has already"
            plugin = replace(plugin, classes=(), problem=why)
        owners |= dict.fromkeys(() if twice else names, plugin.title)
        checked.append(plugin)
    return tuple(checked)


def _names(each: Declared) -> list[str]:
    """The names that a class takes, in words: its own, and the title of a method, since tables call it so."""
    titled = each.kind == "methods" and "title" in each.values
    return [str(each), f"title {each.values['title']}"] if titled else [str(each)]


def _module(plugin: Plugin) -> ModuleType:
    """Imports a plug-in. UserError names it."""
    try:
        if plugin.module in sys.modules or not plugin.module.startswith("sdpo_bench_plugin_"):
            return importlib.import_module(plugin.module)
        spec = importlib.util.spec_from_file_location(plugin.module, plugin.path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[plugin.module] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[plugin.module]
            raise
        return module
    except UserError as error:
        raise UserError(f"{plugin.title}: {error}") from error
    except Exception as error:
        line = str(error).strip().split("\n")[0]
        raise UserError(f"{plugin.title} can't be loaded ({type(error).__name__}: {line}); repair it") from error


def _classes(plugin: Plugin, kind: str, base: type) -> list[type]:
    """The classes of a plug-in of a kind. UserError if they are not those that its text names."""
    expected = {each.name for each in plugin.classes if each.kind == kind}
    if not expected:
        return []
    own = KINDS[kind][1]
    found = {
        getattr(vars(value)[own], "__name__", vars(value)[own]): value
        for value in vars(_module(plugin)).values()
        if isinstance(value, type) and issubclass(value, base) and own in vars(value)
        if value.__module__ == plugin.module
    }
    if found.keys() != expected:
        raise UserError(
            f"{plugin.title}: its text names the {kind} {', '.join(sorted(expected))}, but it defines "
            f"{', '.join(sorted(map(str, found))) or 'none'}; write the {own} of a class as a plain value"
        )
    return list(found.values())
