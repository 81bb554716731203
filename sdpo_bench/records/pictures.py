"""Grids of images of runs, as WebP."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image

from sdpo_bench.records.files import RERUN, RecordError
from sdpo_bench.records.run_folder import RunRecord

WHEN = ("before", "after")


def entry_name(run_id: str, when: str) -> str:
    """The name of a run's grid in a zip of images."""
    return f"{run_id}_{when}.webp"


def stored(run: RunRecord, when: str) -> tuple[bytes, Path] | None:
    """A run's grid as it is stored, and the file that it is in: an image in its folder, or a zip of packed ones. None
    if there is none."""
    if when in run.pictures:
        path = run.folder.parents[1] / run.pictures[when]
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(entry_name(run.run_id, when)), path
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise RecordError(f"{path}: not the pictures of {run.run_id} ({error}); {RERUN}") from error
    paths = (run.folder / f"grid_{when}.{kind}" for kind in ("png", "webp"))
    return next(((path.read_bytes(), path) for path in paths if path.exists()), None)


def opened(content: bytes, path: Path) -> Image.Image:
    """The image with this content, of this file. RecordError if it is not an image."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        return image
    except Exception as error:  # of damaged pictures Pillow raises much more than OSError
        raise RecordError(f"{path}: not a picture ({error}); {RERUN}") from error


def picture(run: RunRecord, when: str) -> Image.Image | None:
    """A run's grid, from its folder or packed; None if there is none."""
    found = stored(run, when)
    return None if found is None else opened(*found)


def grid(run: RunRecord, when: str) -> bytes | None:
    """A run's grid as WebP, from its folder or packed; None if there is none."""
    if (found := stored(run, when)) is None:
        return None
    image = opened(*found)
    if image.format == "WEBP":
        return found[0]
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=80, method=6)
    return buffer.getvalue()


def zipped(entries: dict[str, bytes]) -> bytes:
    """A zip of uncompressed files, with the same bytes at any time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.create_system = 3  # else the machine's own
            archive.writestr(info, entries[name])
    return buffer.getvalue()
