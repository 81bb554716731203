"""Refuses a change that would make the repository large: everybody who clones it carries its history.

    python .ci/added_size.py [BASE]    # BASE: default origin/main, or HEAD~1

Counted are the objects of the commits since BASE: together at most 1 MB as git packs them, and no new file of more than
500 kB (one that is as large in BASE may change). Left out are files in folders named assets or values, whose content is
meant to be there and to stay, and commits with a line "Large-change: REASON" at their message's end. Exit code 1 where
the change is refused.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import PurePosixPath

PACKED = 1_000_000
FILE = 500_000


MEANT = {"assets", "values"}


TRAILER = "Large-change"


def git(*arguments: str, data: bytes | None = None) -> bytes:
    return subprocess.run(["git", *arguments], input=data, capture_output=True, check=True).stdout


def commit(name: str) -> str | None:
    done = subprocess.run(["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"], capture_output=True)
    return done.stdout.decode().strip() or None


def base(given: str | None) -> str | None:
    """The commit to compare with; None where there is none."""
    if given is not None:
        return commit(given)
    head = commit("HEAD")
    if commit("origin/main"):
        done = subprocess.run(["git", "merge-base", "origin/main", "HEAD"], capture_output=True)
        found = done.stdout.decode().strip()
        if found and found != head:
            return found
    return commit("HEAD~1")


def objects(*revisions: str) -> dict[str, str]:
    """Ids of objects with their paths ("" of a commit or the root)."""
    lines = git("rev-list", "--objects", *revisions).decode(errors="replace").splitlines()
    return {name: path for name, _, path in (line.partition(" ") for line in lines)}


def excused(start: str) -> dict[str, str]:
    """The commits since `start` that say why they are large, with their reasons."""
    form = f"%H%x09%(trailers:key={TRAILER},valueonly,separator=%x20)"
    lines = git("log", f"--format={form}", f"{start}..HEAD").decode(errors="replace").splitlines()
    return {name: reason for name, _, reason in (line.partition("\t") for line in lines) if reason.strip()}


def added(start: str) -> dict[str, str]:
    """The objects that count, with their paths."""
    found = objects("HEAD", f"^{start}")
    for name in excused(start):
        for other in objects(name, f"^{start}", *(f"^{parent}" for parent in parents(name))):
            found.pop(other, None)
    return {name: path for name, path in found.items() if not MEANT & {*PurePosixPath(path).parts}}


def parents(name: str) -> list[str]:
    return git("rev-parse", f"{name}^@").decode().split()


def sizes(names: list[str]) -> dict[str, int]:
    """Bytes of the files among these objects."""
    form = "--batch-check=%(objectname) %(objecttype) %(objectsize)"
    lines = git("cat-file", form, data="\n".join(names).encode()).decode().splitlines()
    return {name: int(size) for name, kind, size in map(str.split, lines) if kind == "blob"}


def packed(start: str, found: dict[str, str]) -> int:
    """Bytes of these objects in a pack for somebody who has `start`."""
    lines = [f"-{start}", *(f"{name} {path}".rstrip() for name, path in found.items())]
    return len(git("pack-objects", "--stdout", "--quiet", data="\n".join(lines).encode() + b"\n"))


def large(start: str, found: dict[str, str]) -> list[str]:
    """The new files that are too large, in words."""
    before = objects("--no-walk", start)
    known = {path for name, size in sizes([*before]).items() if size > FILE for path in (before[name],)}
    return sorted(
        f"{found[name]}: {size:,} bytes, more than {FILE:,}"
        for name, size in sizes([*found]).items()
        if size > FILE and found[name] not in known
    )


def main(arguments: list[str]) -> int:
    given = arguments[0] if arguments else None
    start = base(given)
    if start is None:
        if given is not None:
            print(f"error: {given} is no commit", file=sys.stderr)
            return 2
        print("neither origin/main nor HEAD~1 is here: there is nothing to compare the repository's size with")
        return 0
    for name, reason in excused(start).items():
        print(f"commit {name[:12]} is not counted: {reason.strip()}")
    found = added(start)
    size = packed(start, found) if found else 0
    wrong = large(start, found)
    if size > PACKED:
        wrong.append(f"all together: {size:,} bytes as packed, more than {PACKED:,}")
    print(f"since {start[:12]}: {size:,} bytes as packed, outside of assets/ and values/")
    if wrong:
        print(
            "error: the change makes the repository too large:\n  " + "\n  ".join(wrong) + "\nLeave files out, pack "
            f"records (sdpo-bench tables FOLDER --pack), or end the commit's message with a line '{TRAILER}: REASON'.",
            file=sys.stderr,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
