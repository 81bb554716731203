"""The check of how much a change adds to the repository."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "added_size.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="an installed copy has no .ci")


@pytest.fixture
def repository(tmp_path):
    """A repository of one commit; a function that commits files of so many random bytes, one that checks."""
    settings = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **settings, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*arguments):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True, env=environment)

    def commit(message="more", seed=0, **sizes):
        for name, size in sizes.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random.Random(seed).randbytes(size))
        git("add", "-A")
        git("commit", "-m", message, "--allow-empty")

    def check(*arguments):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.returncode in (0, 1, 2), done.stderr
        return done.returncode, done.stdout + done.stderr

    git("init", "-b", "main")
    commit("first", old=600_000)
    return git, commit, check


def test_nothing_to_compare_with_is_said(repository):
    _, _, check = repository
    assert check() == (
        0,
        "neither origin/main nor HEAD~1 is here: there is nothing to compare the repository's size with\n",
    )
    assert check("nothing") == (2, "error: nothing is no commit\n")


@pytest.mark.parametrize(
    ("sizes", "refused"),
    [
        ({"a": 499_000}, None),
        ({"a": 501_000}, "a: 501,000 bytes, more than 500,000"),
        ({"a": 400_000, "b": 400_000}, None),
        ({"a": 400_000, "b": 400_001, "c": 400_002}, "all together: 1,201,"),
        ({"sdpo_bench__assets__weights": 2_000_000, "results__full__values__part-1.parquet": 2_000_000}, None),
        ({"results__full__valuesx": 501_000}, "results/full/valuesx: 501,000"),
    ],
)
def test_a_change_is_refused_by_its_size(repository, sizes, refused):
    _, commit, check = repository
    for seed, (name, size) in enumerate(sizes.items()):
        commit(seed=seed, **{name: size})
    code, text = check("HEAD~" + str(len(sizes)))
    assert code == (refused is not None), text
    assert refused is None or refused in text


def test_what_is_removed_again_counts_too(repository):
    """Whoever clones has it all the same."""
    git, commit, check = repository
    commit(a=501_000)
    git("rm", "a")
    git("commit", "-m", "away")
    assert check()[0] == 0, "compared with the commit before"
    assert check("HEAD~2")[0] == 1


def test_a_large_file_may_change_and_only_its_change_counts(repository, tmp_path):
    _, commit, check = repository
    path = tmp_path / "old"
    path.write_bytes(path.read_bytes() + b"a line\n")
    commit()
    code, text = check()
    assert code == 0
    assert int(text.split(": ")[1].split()[0].replace(",", "")) < 1000


def test_a_commit_may_say_why_it_is_large(repository):
    _, commit, check = repository
    commit("Records\n\nLarge-change: all of the study's", a=600_000, b=600_000)
    code, text = check()
    assert code == 0
    assert "is not counted: all of the study's" in text
    commit(seed=2, c=501_000)
    assert check("HEAD~2")[0] == 1, "another commit is counted"


def test_the_remote_is_compared_with_where_there_is_one(repository):
    git, commit, check = repository
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    commit(a=501_000)
    commit("small")
    assert check()[0] == 1
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    assert check()[0] == 0, "at its head, with the commit before"
