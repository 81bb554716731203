"""Generated files: nobody else's file is touched, links are refused, writers wait, a kill is survived."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.synthetic_records import make_config, write_run

from sdpo_bench.cli import main
from sdpo_bench.errors import UserError
from sdpo_bench.records import generated
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.generated import MANIFEST, differences, write

FILES = {"README.md": b"read", "tables/a.md": b"a", "tables/b.md": b"b", "figures/c.svg": b"c"}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder in which FILES were generated, with files of somebody else's beside them."""
    write(tmp_path, lambda: FILES)
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "tables" / "own.csv").write_text("mine")
    (tmp_path / "figures" / "own.png").write_text("mine")
    return tmp_path


def test_somebody_elses_files_stay(folder):
    before = tree(folder)
    assert write(folder, lambda: FILES) == sorted(folder / name for name in FILES)
    assert tree(folder) == before
    fewer = {name: content + b"!" for name, content in FILES.items() if name != "tables/b.md"}
    write(folder, lambda: fewer)
    found = tree(folder)
    assert {name: found[name] for name in fewer} == fewer
    assert found.keys() - fewer.keys() == {MANIFEST, "notes.md", "tables/own.csv", "figures/own.png"}
    assert {name: found[name] for name in before.keys() - FILES.keys() - {MANIFEST}} == dict.fromkeys(
        ("notes.md", "tables/own.csv", "figures/own.png"), b"mine"
    )
    assert differences(folder, fewer) == {}
    assert list(json.loads((folder / MANIFEST).read_text())) == sorted(fewer)


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_the_way_is_refused_before_anything_is_written(folder, name):
    """Both where nothing was generated before and where what was generated has been changed since."""
    (folder / name).write_text("mine")
    before = tree(folder)
    new = {key: content + b"!" for key, content in FILES.items()}
    with pytest.raises(UserError, match=rf"{name} would be overwritten.*move it away.*nothing was written"):
        write(folder, lambda: new)
    assert tree(folder) == before
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="would be overwritten"):
        write(folder, lambda: new)
    (folder / MANIFEST).write_bytes(before[MANIFEST])
    (folder / name).unlink()
    write(folder, lambda: new)
    assert (folder / name).read_bytes() == new[name]


def test_files_that_are_as_they_should_be_are_adopted(folder):
    """A folder from before the manifest, or a copy without it."""
    (folder / MANIFEST).unlink()
    assert differences(folder, FILES) == {MANIFEST: "missing"}
    write(folder, lambda: FILES)
    assert differences(folder, FILES) == {}


def test_a_changed_file_that_is_no_longer_generated_is_left_alone(folder, capsys):
    (folder / "tables" / "b.md").write_text("mine now")
    fewer = {name: content for name, content in FILES.items() if name != "tables/b.md"}
    write(folder, lambda: fewer)
    assert (folder / "tables" / "b.md").read_text() == "mine now"
    assert "tables/b.md is left alone: it was changed" in capsys.readouterr().err
    write(folder, lambda: fewer)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["README.md", "tables/a.md", "tables", "figures", MANIFEST])
def test_links_are_refused(folder, tmp_path_factory, name):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    target = elsewhere / Path(name).name
    (folder / name).rename(target)
    (folder / name).symlink_to(target)
    before, outside = tree(folder), tree(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        write(folder, lambda: {key: content + b"!" for key, content in FILES.items()})
    assert (tree(folder), tree(elsewhere)) == (before, outside)
    if name != MANIFEST:
        assert "a link" in differences(folder, FILES).values()


def test_a_stale_link_is_not_followed(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere") / "b.md"
    (folder / "tables" / "b.md").rename(target)
    (folder / "tables" / "b.md").symlink_to(target)
    write(folder, lambda: {"README.md": b"read"})
    assert target.read_bytes() == b"b"


@pytest.mark.parametrize("text", ["{", "[]", '{"../notes.md": "00"}', '{"raw/x": "00"}', '{"tables/..": 1}', "1"])
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(RecordError, match="not a list of generated files"):
        write(folder, lambda: FILES)


def test_a_kill_at_any_write_is_survived(folder, monkeypatch):
    """Each write is the last one in its turn; the next call, which gives other files, finishes all the same."""
    original = generated.write_atomic
    for number in range(6):
        for version in (b"1", b"2"):
            new = {key: content + version + str(number).encode() for key, content in FILES.items()}
            calls = iter(range(number))

            def killed(path, content, calls=calls):
                if next(calls, None) is None:
                    path.with_name(f".{path.name}.{'0' * 16}.tmp").write_bytes(content)
                    raise KeyboardInterrupt
                original(path, content)

            monkeypatch.setattr(generated, "write_atomic", killed if version == b"1" else original)
            if version == b"1":
                with pytest.raises(KeyboardInterrupt):
                    write(folder, lambda new=new: new)
            else:
                write(folder, lambda new=new: new)
                assert differences(folder, new) == {}
                assert not list(folder.rglob(".*.tmp"))
                assert not list(folder.rglob(".*.lock"))
    assert (folder / "notes.md").read_text() == "mine"


def test_two_processes_that_write_the_same_tables_both_succeed(tmp_path):
    """Real processes at the same moment, on files large enough to overlap, in several rounds."""
    code = (
        "import sys, pathlib; from sdpo_bench.records.generated import write\n"
        "sys.stdin.readline()\n"
        "for i in range(15):\n"
        "    files = {f'tables/{n}.md': b'%d %d ' % (i, n) * 20000 for n in range(i % 3, 6)}\n"
        "    write(pathlib.Path(sys.argv[1]), lambda: files)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        for _ in range(2)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert ends == ["", ""]
    last = {f"tables/{n}.md": b"14 %d " % n * 20000 for n in range(2, 6)}
    assert differences(tmp_path, last) == {}
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        MANIFEST,
        *(Path(name).name for name in last),
    }


def test_the_command_names_the_file_in_the_way(tmp_path, capsys):
    """A README.md of one's own in a folder of results."""
    write_run(tmp_path, make_config("SDPO"), pictures=False)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.md").write_text("mine")
    before = tree(tmp_path)
    assert main.main(["tables", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/README.md would be overwritten")
    assert tree(tmp_path) == before
    (tmp_path / "README.md").unlink()
    assert main.main(["tables", str(tmp_path)]) == 0
    assert main.main(["tables", str(tmp_path), "--check"]) == 0
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_temporary_files_follow_no_link_and_take_no_others_place(tmp_path, monkeypatch):
    from sdpo_bench.records import files

    precious = tmp_path / "precious"
    precious.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0" * 16)
    os.symlink(precious, tmp_path / f".a.md.{'0' * 16}.tmp")
    with pytest.raises(FileExistsError):
        files.write_atomic(tmp_path / "a.md", b"new")
    assert precious.read_text() == "mine"
    assert not (tmp_path / "a.md").exists()
