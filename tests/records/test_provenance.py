"""Provenance: what made a number, and nothing about whose machine it was."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sdpo_bench.records import provenance


def test_collect_has_what_records_need():
    found = provenance.collect("cpu")
    assert found["device"].startswith("cpu: ")
    assert found["threads"] == 1
    assert found["backend"] == "torch"
    assert {"python", "torch", "diffusers", "transformers", "peft", "numpy", "sdpo_bench"} <= found["versions"].keys()
    assert (found["commit"] is None or found["dirty"]) == ("source" in found)
    assert found["rewards"] == {}
    json.dumps(found)


def test_nothing_names_the_machine():
    text = json.dumps(provenance.collect("cpu") | {"command": ""})
    for private in (socket.gethostname(), os.getcwd(), str(Path.home()), str(provenance.PACKAGE), sys.prefix):
        assert private not in text
    assert getpass.getuser() not in json.dumps(provenance.code_version())


def test_command_has_no_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--model", "/models/tiny/", "--out", f"{tmp_path}/a/b", "--prompts=/p/q.txt"]
    expected = "sdpo-bench train --model tiny --out a/b --prompts=q.txt"
    assert provenance.command(["/opt/x/bin/sdpo-bench", *argv]) == expected
    assert provenance.command(["/x/sdpo_bench/__main__.py", "tables"]) == "sdpo-bench tables"
    assert provenance.command(["sdpo-bench", "train", "--options", "gamma", "0.9", "--out", "a b"]).endswith("'a b'")


def test_source_hash_sees_names_and_contents(tmp_path):
    (tmp_path / "a.py").write_text("x")
    first = provenance.source_hash(tmp_path)
    (tmp_path / "notes.md").write_text("no code")
    assert provenance.source_hash(tmp_path) == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    second = provenance.source_hash(tmp_path)
    (tmp_path / "b.py").write_text("y")
    assert len({first, second, provenance.source_hash(tmp_path)}) == 3


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from sdpo_bench.records import provenance
print(json.dumps([provenance.code_version(), str(provenance.PACKAGE)]))
"""


@pytest.mark.parametrize("inside", ["nothing", "foreign", "given", "clean", "changed"])
def test_commit_is_this_projects_own(tmp_path, inside):
    """An installed copy has no commit, in somebody else's repository either, but for one that is given; a changed
    checkout says so, and believes git alone."""
    root = tmp_path / "root"
    (root / "sdpo_bench" / "records").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "records/__init__.py", "records/provenance.py"):
        shutil.copy(provenance.PACKAGE / name, root / "sdpo_bench" / name)

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments],
            cwd=root,
            check=True,
            capture_output=True,
        )

    if inside not in ("nothing", "given"):
        git("init")
        (root / "README").write_text("x")
        git("add", "README" if inside == "foreign" else ".")
        git("commit", "-m", "x")
    if inside == "changed":
        (root / "sdpo_bench" / "new_method.py").write_text("")
    (root / "results").mkdir()
    (root / "results" / "record.json").write_text("{}")  # not code
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"PYTHONDONTWRITEBYTECODE": "1"}
    if inside not in ("nothing", "foreign"):
        env |= {provenance.COMMIT: "a" * 40}
    command = [sys.executable, "-c", SCRIPT, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    version, package = json.loads(done.stdout)
    assert package == str(root / "sdpo_bench")
    if inside in ("nothing", "foreign"):
        assert version["commit"] is None
    else:
        assert len(version["commit"]) == 40
        assert (version["commit"] == "a" * 40) == (inside == "given")
        assert version["dirty"] == (inside == "changed")
    assert ("source" in version) == (inside != "clean")
