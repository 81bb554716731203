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


def webp(path: Path) -> bytes:
    """Converts an image file to WebP; a WebP file stays unchanged. RecordError if it is not an image."""
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.format == "WEBP":
                return content
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "WEBP", quality=80, method=6)
            return buffer.getvalue()
    except Exception as error:  # of damaged pictures Pillow raises much more than OSError
        raise RecordError(f"{path}: not a picture ({error}); {RERUN}") from error


def grid_file(run: RunRecord, when: str) -> Path | None:
    """The file of a run's grid `when` ("before" or "after" training) in its folder; None if there is none."""
    paths = (run.folder / f"grid_{when}.{kind}" for kind in ("png", "webp"))
    return next((path for path in paths if path.exists()), None)


def grid(run: RunRecord, when: str) -> bytes | None:
    """A run's grid as WebP, from its folder or packed; None if there is none."""
    if when in run.pictures:
        path = run.folder.parents[1] / run.pictures[when]
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(entry_name(run.run_id, when))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise RecordError(f"{path}: not the pictures of {run.run_id} ({error}); {RERUN}") from error
    file = grid_file(run, when)
    return None if file is None else webp(file)


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
