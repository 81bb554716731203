"""Writes generated files (tables, figures, pages) into a folder of results, and changes no other file there.

`.generated` in that folder lists them by name with the SHA-256 of what was written. So a later call can tell generated
files from other files: it overwrites and removes only files that are unchanged since they were written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sdpo_bench.errors import UserError
from sdpo_bench.records.files import RecordError, remove_temporaries, write_atomic

MANIFEST = ".generated"


Contents = Mapping[str, bytes]  # by name, relative to the folder of results: "README.md", "tables/order.md"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest_bytes(hashes: Mapping[str, str]) -> bytes:
    return (json.dumps(hashes, indent=0, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, set[str]]:
    """The hashes that each generated file may have: one, or two for a file that was being written."""
    path = folder / MANIFEST
    if path.is_symlink():
        raise UserError(f"{path} is a link; remove it, generated files are not written through links")
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
        hashes = {name: set(texts.split()) for name, texts in found.items()}
        # Nothing but what is generated: what is listed may be removed.
        if not all(re.fullmatch(r"README\.md|report\.html|(tables|figures)/[^/\0]+", name) for name in hashes):
            raise ValueError("a name that no generated file has")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RecordError(
            f"{path}: not a list of generated files ({error}); restore it, or remove it and the "
            "generated files beside it"
        ) from error
    return hashes


@contextlib.contextmanager
def alone(folder: Path, name: str = ".generated.lock") -> Iterator[None]:
    """Waits until no other process holds the lock file of this name in the folder, and then makes others wait."""
    path = folder / name
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The holder before us removed its lock file: make sure that ours is the one others will find.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path, follow_symlinks=False).st_ino == os.fstat(lock).st_ino:
                break
        os.close(lock)
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:  # whatever comes of that, nobody need wait for a lock of ours
            os.close(lock)


def _check_place(folder: Path, contents: Contents, known: Mapping[str, set[str]]) -> None:
    """UserError, before anything is written, for a link, or for a file in the way that was not written here."""
    for name in sorted({parent for key in (*contents, *known) if (parent := os.path.dirname(key))}):
        place = folder / name
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise UserError(
                f"{place} is {'a link' if place.is_symlink() else 'not a folder'}; move it away, generated "
                "files are written into a folder of that name"
            )
    foreign = []
    for name, content in contents.items():
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(
                f"{path} is {'a link' if path.is_symlink() else 'not a file'}; move it away, a generated file "
                "has that name"
            )
        if path.exists() and (found := path.read_bytes()) != content and _hash(found) not in known.get(name, ()):
            foreign.append(path)
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise UserError(
            f"{foreign[0]}{more} would be overwritten, but is not as `sdpo-bench tables` wrote it: move it "
            "away, or delete it, and run this again; nothing was written"
        )


def write(folder: str | os.PathLike[str], build: Callable[[], Contents]) -> list[Path]:
    """Writes the files that `build` returns into the folder, and removes earlier generated files that it no longer
    returns. Returns the sorted paths. Other processes that write there wait.

    Errors: `UserError`, before anything is written, for a link or a foreign file in the way. A generated file that is
    no longer returned but was changed is not removed, and a note says so.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; give a profile's results, for example results/quick")
    with alone(folder):
        contents = build()
        known = read_manifest(folder)
        _check_place(folder, contents, known)
        hashes = {name: _hash(content) for name, content in contents.items()}
        changed = {
            name: content
            for name, content in contents.items()
            if not (folder / name).exists() or (folder / name).read_bytes() != content
        }
        stale = {
            name: path
            for name in known.keys() - contents.keys()
            if (path := folder / name).is_file() and not path.is_symlink()
        }
        if changed or stale:
            # Killed from here on, each file is the earlier or the new one: both are listed until all are written.
            both = {
                name: " ".join(sorted(known.get(name, set()) | ({hashes[name]} if name in hashes else set())))
                for name in known.keys() | hashes.keys()
            }
            write_atomic(folder / MANIFEST, manifest_bytes(both))
        for name, content in changed.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, content)
        for name, path in sorted(stale.items()):
            if _hash(path.read_bytes()) in known[name]:
                path.unlink()
            else:
                print(f"note: {path} is left alone: it was changed since it was generated", file=sys.stderr)
        ours: dict[Path, set[str]] = {folder: {MANIFEST}}
        for path in map(folder.joinpath, known.keys() | contents.keys()):
            ours.setdefault(path.parent, set()).add(path.name)
        for place, names in ours.items():
            remove_temporaries(place, names)
        if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != manifest_bytes(hashes):
            write_atomic(folder / MANIFEST, manifest_bytes(hashes))
    return sorted(folder / name for name in contents)


def differences(folder: Path, contents: Contents) -> dict[str, str]:
    """The changes that `write` would make, by name: files that are missing, different, links, or no longer
    generated."""
    wrong = {}
    listed = {**contents, MANIFEST: manifest_bytes({name: _hash(content) for name, content in contents.items()})}
    for name, content in listed.items():
        path = folder / name
        if path.is_symlink() or (path.parent.is_symlink() and path.parent != folder):
            wrong[name] = "a link"
        elif not path.is_file():
            wrong[name] = "missing"
        elif path.read_bytes() != content:
            wrong[name] = "other"
    for name in read_manifest(folder).keys() - contents.keys():
        if (folder / name).exists():
            wrong[name] = "not from these records"
    return dict(sorted(wrong.items()))
