"""A hook of MkDocs: the site has the repository's paths, so every relative link leads to the same file on both.

The pages of docs/ keep their folder's name. Files outside of docs/ that a page links to become part of the site: pages
as pages, anything else as it is. Nothing is copied within the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LINK = re.compile(r"\]\(([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    docs = Path(config.docs_dir)
    root = docs.parent
    ours = [path for file in files if file.abs_src_path and (path := Path(file.abs_src_path)).is_relative_to(docs)]
    todo, found = [root / "README.md", *ours], {}
    while todo:
        path = todo.pop()
        uri = path.relative_to(root).as_posix()
        if uri not in found:
            found[uri] = File.generated(config, uri, abs_src_path=str(path))
            todo += linked(path, root) if path.suffix == ".md" else []
    theme = [file for file in files if not (file.abs_src_path and Path(file.abs_src_path).is_relative_to(docs))]
    return Files([*found.values(), *theme])


def linked(page: Path, root: Path) -> list[Path]:
    """The files of the repository that a page links to."""
    targets = [(page.parent / link).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))]
    return [path for path in targets if path.is_file() and path.is_relative_to(root)]
