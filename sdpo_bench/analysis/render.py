"""Tables as Markdown, CSV, LaTeX and text, with every cell escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from sdpo_bench.analysis.markup import escaped, grid
from sdpo_bench.analysis.tables.base import Table
from sdpo_bench.records.files import RecordError
from sdpo_bench.terminal import printable


def markdown(table: Table) -> str:
    """GitHub Markdown, without a trailing newline."""
    title, answer, note = map(escaped, (table.title[:1].upper() + table.title[1:], table.answer, table.note))
    lines = [f"**{title}**", *(["", answer] if answer else [])]
    for title, rows in table.blocks:
        lines += [
            "",
            *([f"*{escaped(title)}*", ""] if title else []),
            *grid(table.header, rows),
        ]
    return "\n".join([*lines, "", note])


TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"$\sim$",
        "^": r"\^{}",
        "–": "--",
        ">": "$>$",
        "<": "$<$",
        "|": "$|$",
    }
)


def _tex(text: str) -> str:
    return printable(text).translate(TEX)


def _tex_row(row: Iterable[str]) -> str:
    line = " & ".join(map(_tex, row)) + r" \\"
    return "{}" + line if line.startswith(("[", "*")) else line  # else an option of the row before


def latex(table: Table) -> str:
    """A LaTeX table environment (package booktabs), without a trailing newline."""
    columns = len(table.header)
    caption = f"{table.title[:1].upper() + table.title[1:]}. {table.note.replace('`', '')}"
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        r"\toprule",
        _tex_row(table.header),
    ]
    for title, rows in table.blocks:
        lines.append(r"\midrule")
        if title:
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{_tex(title)}}}}} \\")
        lines += map(_tex_row, rows)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def csv(frame: pd.DataFrame) -> str:
    """A table's frame as CSV. An apostrophe stands before a text that a spreadsheet would run as a formula."""
    safe = {}
    for name in frame.select_dtypes(exclude=["number", "bool"]).columns:
        cells = frame[name].tolist()
        texts = {cell: _no_formula(cell) for cell in cells if isinstance(cell, str)}
        if any(cell != text for cell, text in texts.items()):
            safe[name] = [texts.get(cell, cell) for cell in cells]
    return frame.assign(**safe).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _no_formula(cell: str) -> str:
    cell = printable(cell)
    return "'" + cell if cell.startswith(("=", "+", "-", "@", "\t", "\n")) and not _numbers(cell) else cell


def _numbers(text: str) -> bool:
    """Whether a text is nothing but numbers with spaces between, as the values of runs."""
    try:
        return bool([float(part) for part in text.split(" ")])
    except ValueError:
        return False


def table_files(tables: Sequence[Table], tex: bool = False) -> dict[str, bytes]:
    """`tables/*`, by name: a page for each table, and the files of `data_files`."""
    return {f"tables/{table.name}.md": f"{markdown(table)}\n".encode() for table in tables} | data_files(tables, tex)


def data_files(tables: Sequence[Table], tex: bool = False) -> dict[str, bytes]:
    """`tables/*.csv`, by name, of the tables that have rows; with `tex` also a `.tex` for each table. RecordError where
    two tables have the same name."""
    names = Counter(table.name for table in tables)
    if twice := [name for name, count in names.items() if count > 1]:
        raise RecordError(
            f"two tables would be named {twice[0]}: rewards, models or devices of these records have names "
            "that differ in their signs alone; keep them in two folders of results"
        )
    frames: dict[str, list[pd.DataFrame]] = {}
    for table in tables:
        if not table.frame.empty:
            frames.setdefault(table.csv, []).append(table.frame)
    files = {f"tables/{name}": csv(pd.concat(found, ignore_index=True)).encode() for name, found in frames.items()}
    return files | ({f"tables/{table.name}.tex": f"{latex(table)}\n".encode() for table in tables} if tex else {})


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def text(table: Table) -> str:
    """Aligned columns, for a terminal."""
    lines = [table.title, *(["", table.answer] if table.answer else [])]
    for title, rows in table.blocks:
        lines += ["", *aligned([(title or table.header[0], *table.header[1:]), *rows])]
    return "\n".join([*lines, "", table.note])
