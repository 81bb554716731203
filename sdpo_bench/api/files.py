"""Configuration files of `train --config`: YAML, JSON, or the config.json of a run, also of a packed one.

A file is a mapping of `RunConfig`'s fields. It is read as YAML 1.2's core schema, in which `1e-4` is a number, and
`no`, `010`, `1:30` and `2026-01-01` are texts; PyYAML alone reads YAML 1.1, where each of these is something else.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from sdpo_bench.config import SCHEMA, RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.methods import METHODS
from sdpo_bench.records.lookup import stored_run
from sdpo_bench.records.reader import run_ids
from sdpo_bench.records.schema import LARGEST, shortened

DERIVED = ("begun", "prompts_sha256", "run_id", "schema")
"""Keys of a run's config.json that follow from its settings."""

SEQUENCE = "tag:yaml.org,2002:seq"
WORDS = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a text (of digits alone: in quotes)",
    NoneType: "null",
}


@dataclass(frozen=True)
class Settings:
    """The contents of a file: values of `RunConfig`'s fields, and of a run's config.json the digests of its prompts."""

    source: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    prompts_sha256: list[str] | None = None
    chosen: frozenset[str] = frozenset()
    """The keys that somebody chose: all of a hand-written file, none of a run's or a dump, which have every setting."""


def read_settings(path: Path) -> Settings:
    """The settings of a file, or of a run's folder such as results/quick/raw/RUN_ID, be the run packed or not.
    UserError names the file and the key."""
    found = _content(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected settings, such as `steps: 4`, one a line; found {shortened(found)}")
    return checked(found, str(path))


def checked(found: Mapping[str, Any], source: str) -> Settings:
    """Settings from a mapping such as config.json's; errors as of `typed_settings`."""
    if "run_id" in found and found.get("schema") != SCHEMA:
        raise UserError(
            f"{source}: schema is {shortened(found.get('schema'))}, not {SCHEMA}; use the version that wrote it"
        )
    values = typed_settings({key: value for key, value in found.items() if key not in DERIVED}, source)
    every = "schema" in found or {f.name for f in fields(RunConfig)} <= found.keys()
    chosen = frozenset() if every else frozenset(found)
    return Settings(source, _without_methods_own(values), found.get("prompts_sha256"), chosen)


def typed_settings(found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings with the types of `RunConfig`'s fields. UserError for an unknown key or a value of another type."""
    values = dict(found)
    own = _split_method(values)
    hints = _hints()
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{source}: unknown key {shortened(key)}{nearest(key, hints)}")
        values[key] = typed(value, hints[key], f"{source}: {key}")
    if own:
        values["options"] = own | values.get("options", {})
    return values


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(RunConfig)


def nearest(key: object, known: Iterable[str]) -> str:
    """A hint for an unknown key: the one that was probably meant, or where all are listed."""
    found = difflib.get_close_matches(str(key).replace("-", "_").lower(), known, n=1)
    return f"; did you mean {found[0]}?" if found else "; `sdpo-bench train --dump-config` shows all"


def _split_method(values: dict[str, Any]) -> dict[str, Any]:
    """Replaces config.json's method, an object of name and options, by its name; returns the options. The pretrained
    model's record has no method."""
    if not isinstance(method := values.get("method"), dict):
        return {}
    options = {key: value for key, value in method.items() if key != "name"}
    values["method"] = method.get("name")
    if values["method"] == "start":
        del values["method"]
    return options


def _without_methods_own(values: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what config.json holds but the method would give itself: another --method then brings its own."""
    cls = METHODS.get(values.get("method", RunConfig.method))
    if cls is None:
        return values
    own = {
        "label": (cls.title, "start"),
        "updates": (cls.updates,),
        "group_size": (cls.group_size,),
        "dense": (cls.dense_reward,),
    }
    return {key: value for key, value in values.items() if value not in own.get(key, ())}


# Types --------------------------------------------------------------------------------------------------------------


class _OtherType(Exception):
    """A value is not of a type."""


def typed(value: Any, hint: Any, where: str) -> Any:
    """The value as a field of this type holds it: lists as tuples, whole numbers as float where numbers are expected.
    UserError for another type."""
    try:
        return _fitted(value, hint)
    except _OtherType:
        raise UserError(f"{where} is {shortened(value)}; expected {in_words(hint)}") from None


def _fitted(value: Any, hint: Any) -> Any:
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Literal:
        if isinstance(value, str) and value in arguments:
            return value
    elif kind is tuple:
        if isinstance(value, list | tuple):
            return tuple(_fitted(entry, arguments[0]) for entry in value)
    elif kind is dict:
        if isinstance(value, dict):
            return {_fitted(key, arguments[0]): _fitted(entry, arguments[1]) for key, entry in value.items()}
    elif arguments:  # one of several
        return _fitted(value, next((one for one in arguments if _fits(value, one)), NoneType))
    elif hint is float:
        if type(value) in (int, float) and abs(value) <= LARGEST:
            return float(value)
    elif type(value) is hint:
        return value
    raise _OtherType


def _fits(value: Any, hint: Any) -> bool:
    try:
        _fitted(value, hint)
    except _OtherType:
        return False
    return True


def in_words(hint: Any) -> str:
    """The type of a field in words."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(arguments)}"
    if kind is tuple:
        return f"a list, each {in_words(arguments[0])}"
    if kind is dict:
        return "a mapping of names to numbers"
    return " or ".join(map(in_words, arguments)) if arguments else WORDS[hint]


# A file's content ---------------------------------------------------------------------------------------------------


def _content(path: Path) -> Any:
    if path.is_dir() or not path.exists():
        return _run_settings(path)
    is_json = path.suffix == ".json"
    try:
        text = path.read_text("utf-8")
        return json.loads(text, object_pairs_hook=_unique) if is_json else yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not YAML: {error.problem}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); expected a text in UTF-8") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not {'JSON' if is_json else 'YAML'}: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path}: lists or mappings are nested too deeply") from error


def _run_settings(path: Path) -> dict[str, Any]:
    """The configuration of a run in a folder or packed, as its config.json has it."""
    folder = (path.parent if path.name == "config.json" else path).absolute()
    if (stored := stored_run(folder)) is not None:
        return stored.config
    if path.is_dir():
        raise UserError(f"{path}: this folder holds no run; expected a file, or a run such as results/quick/raw/RUN_ID")
    known = run_ids(folder.parents[1]) if folder.parent.name == "raw" else []
    found = [name for name in known if name.startswith(folder.name)] or difflib.get_close_matches(folder.name, known)
    meant = f"; did you mean {path.with_name(found[0])}?" if found else ""
    raise UserError(f"{path}: there is no such file, and no run of that name{meant}")


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"the key {shortened(key)} is given twice; leave one out")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's core schema, which refuses a key that is given twice."""

    yaml_implicit_resolvers = {}  # noqa: RUF012, the base class's; without those of YAML 1.1

    def mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        made = [
            (self.construct_object(key, deep=True), self.construct_object(value, deep=True))  # type: ignore[no-untyped-call]
            for key, value in node.value
        ]
        return _unique((key if isinstance(key, str) else repr(key), value) for key, value in made)


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.mapping)
for _tag, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what `_Loader` would not read as a text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


_Dumper.add_representer(list, lambda dumper, value: dumper.represent_sequence(SEQUENCE, value, flow_style=True))


# Writing ------------------------------------------------------------------------------------------------------------


def dumped(config: RunConfig, is_json: bool = False) -> str:
    """Every setting of a run, as `read_settings` reads it back: YAML under the headings of `train --help`, or JSON."""
    row = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    if is_json:
        return json.dumps(row, indent=1) + "\n"
    parts = []
    for group in RunConfig.__bases__:
        own = {f.name: row[f.name] for f in fields(group) if f.name in row}
        row = {key: value for key, value in row.items() if key not in own}
        text = yaml.dump(own, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)
        parts.append(f"# {(group.__doc__ or '').splitlines()[0]}\n{text}")
    return "\n".join(parts)
