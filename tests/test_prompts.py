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


def write(path, text):
    path.write_bytes(text.encode())
    return str(path)


def test_only_line_feeds_end_a_line(tmp_path):
    """Not the other characters that str.splitlines takes; a byte order mark is no part of a prompt, wherever files were
    put together."""
    text = "\ufeffa red car\r\n a\u2028blue\u2029car\u00a0\n\n\ufeff\ufeffa\tgreen car\x0c\n\x0c\n\ufeff"
    assert read_prompts(write(tmp_path / "file", text)) == ["a red car", "a\u2028blue\u2029car", "a\tgreen car"]
    assert read_prompts(write(tmp_path / "twice", "cat\ncat\n")) == ["cat", "cat"]


@pytest.mark.parametrize("character", ["\x00", "\x0c", "\x0b", "\x1b", "\x1c", "\x7f", "\x85", "\r"])
def test_control_characters_within_a_prompt_are_refused(tmp_path, character):
    path = write(tmp_path / "file", f"cat\na red{character}car\n")
    with pytest.raises(UserError, match=rf"file, line 2 has the control character U\+{ord(character):04X}; remove it"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("seen", "unseen"),
    [
        ("\ufeffa red car\n", "a red car\n"),
        ("a red car\n", "a  red\u00a0car\n"),
        ("a red car\n", "a\u2028red car\n"),
        ("caf\u00e9\n", "cafe\u0301\n"),
        ("a\tred car\r\n", "a red car"),
    ],
)
def test_other_spellings_do_not_hide_a_prompt_in_both_lists(tmp_path, seen, unseen):
    seen, unseen = write(tmp_path / "seen", seen), write(tmp_path / "unseen", unseen)
    with pytest.raises(UserError, match="both trained on and held out"):
        splits(seen, unseen)


def test_files_in_another_encoding_are_refused(tmp_path):
    (tmp_path / "file").write_bytes("a red car\n".encode("utf-16"))
    with pytest.raises(UserError, match="can't be read"):
        read_prompts(tmp_path / "file")
