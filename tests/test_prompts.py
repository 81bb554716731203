"""Prompt lists."""

import pytest

from sdpo_bench.errors import UserError
from sdpo_bench.prompts import ANIMALS, read_prompts, splits


def test_default_lists_are_the_45_animals_apart():
    lists = splits()
    assert [len(lists[name]) for name in ("seen", "unseen", "tuning")] == [30, 5, 10]
    assert sorted(p for prompts in lists.values() for p in prompts) == sorted(read_prompts(ANIMALS))
    assert len(set(read_prompts(ANIMALS))) == 45


def test_all_animals_by_name(tmp_path, monkeypatch):
    """The paper's list, under one name wherever the package lies."""
    assert splits("animals") == {"seen": read_prompts(ANIMALS), "unseen": [], "tuning": []}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "animals").write_text("a red car\n")
    assert splits("./animals")["seen"] == ["a red car"]


def test_own_files(tmp_path):
    seen, unseen = tmp_path / "seen", tmp_path / "unseen"
    seen.write_text("a red car\n\n a blue car \n")
    unseen.write_text("a green car\n")
    lists = splits(str(seen), str(unseen))
    assert lists == {"seen": ["a red car", "a blue car"], "unseen": ["a green car"], "tuning": []}
    unseen.write_text("a red car\n")
    with pytest.raises(UserError, match="both trained on and held out"):
        splits(str(seen), str(unseen))
    seen.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        splits(str(seen))
    with pytest.raises(UserError, match="can't be read"):
        splits(str(tmp_path / "none"))
