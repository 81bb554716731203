"""Numbers quoted in the documentation, each tied to the cell of a generated table that it is from.

A comment behind the quotes, invisible on the page, says where each is from, in their order (docs/statistics.md,
"Numbers in the documentation"). This module finds quotes, sources and cells; `tests/test_findings.py` compares them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from support.table_files import markdown_tables

ROOT = Path(__file__).parents[2]
NUMBER = r"[+-]?\d(?:[\d,]*\d)?(?:\.\d+)?"
INTERVAL = rf"{NUMBER} \[{NUMBER}, {NUMBER}\]"
# What must be tied: intervals, shares, counts of counts, decimals, thousands. Settings (K = 4, 8 steps) need not be.
QUOTE = re.compile(
    rf"{INTERVAL}|\d[\d,]* \({NUMBER} %\)|\d+ of (?:the |these )?\d+|{NUMBER} %"
    r"|[+-]?\d+\.\d+|\d{1,3}(?:,\d{3})+"
)
COMMENT = re.compile(r"<!-- quotes\n(.*?)-->", re.S)
FREE = {"95 %"}  # the level of every interval


def numbers(text: str) -> list[str]:
    return re.findall(NUMBER, text)


def references(comment: str) -> list[tuple[str, str]]:
    """Of a comment's lines the text that is quoted (empty: the next number that must be tied) and its source. {a,b} in
    a source is one number after the other. `also SOURCE`: the number before is this one, too."""
    found = []
    for line in filter(None, map(str.strip, comment.splitlines())):
        text, source = re.fullmatch(r'(?:"([^"]*)" )?(.*)', line).groups(default="")
        found += [(text, each) for each in ([source] if text or source.startswith("table ") else expanded(source))]
    return found


def expanded(source: str, brackets: str = "{}") -> list[str]:
    """Every choice of {a,b}, the last varying fastest."""
    left, right = map(re.escape, brackets)
    parts = re.split(rf"{left}([^{right}]*){right}", source)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


@cache
def tables_of(profile: str) -> dict[str, str]:
    return markdown_tables(ROOT / "results" / profile)


def text_of(name: str) -> str:
    """The text of `profile/table`, or of the file of a path with an ending. LookupError: there is none."""
    if "." in name:
        if not (ROOT / name).is_file():
            raise LookupError(f"{name}: there is no such file")
        return (ROOT / name).read_text()
    profile, table = name.split("/")
    if table not in tables_of(profile):
        raise LookupError(f"{name}: no page in results/{profile}/tables has a table of that name")
    return tables_of(profile)[table]


@cache
def table(name: str) -> tuple[tuple[str, ...], dict[str, dict[str, tuple[str, ...]]]]:
    """Header, and the rows' other cells by block and first cell (of tables whose second column says more, by both), of
    `profile/table`."""
    lines = text_of(name).splitlines()
    header: tuple[str, ...] = ()
    blocks: dict[str, dict[str, tuple[str, ...]]] = {}
    block = ""
    for line in lines:
        if re.fullmatch(r"\*[^*]+\*", line):
            block = line.strip("*")
        elif line.startswith("|---"):
            continue
        elif line.startswith("| "):
            cells = tuple(cell.strip() for cell in line.strip("|").split(" | "))
            if not header or cells == header:
                header = cells
            else:
                blocks.setdefault(block, {})[cells[0]] = cells[1:]
                if header[1] == "learning rate":
                    blocks[block][f"{cells[0]}, {cells[1]}"] = cells[1:]
    return header, blocks


def cells_of(source: str) -> list[str]:
    """The cells that `profile/table | block | row | column` names; a block by its beginning, column * for all."""
    name, block, row, column = source.split(" | ")
    header, blocks = table(name)
    title = next((title for title in blocks if title.startswith(block)), None)
    if title is None or row not in blocks[title]:
        raise LookupError(f"{source}: {'no such block' if title is None else 'no such row'} in {name}")
    cells = dict(zip(header[1:], blocks[title][row], strict=True))
    if column == "*":
        return list(cells.values())
    if " / " in column and column not in cells:  # of two columns
        above, below = (float(numbers(cells[name])[0].replace(",", "")) for name in column.split(" / "))
        return [f"{above / below:g}"]
    if column not in cells:
        raise LookupError(f"{source}: no column {column!r} in {name}, which has {list(cells)}")
    return [cells[column]]


def stated(source: str) -> list[str]:
    """The numbers that a source gives: of a cell, of a text in a table (`profile/table ~ text`) or a file (a path), or
    a count of cells by how they begin (`contradicted of profile/table | block | row | *`, summed over [a,b])."""
    if " ~ " in source:
        name, text = source.split(" ~ ", 1)
        if text not in " ".join(text_of(name).split()):
            raise LookupError(f"{source}: {name} does not say so")
        return numbers(text)
    if counted := re.fullmatch(r"(\w[\w ]*?) of (\S+/.*)", source):
        cells = [cell for each in expanded(counted[2], "[]") for cell in cells_of(each)]
        return [str(sum(cell.startswith(counted[1]) for cell in cells)), str(len(cells))]
    return numbers(cells_of(source)[0])


def agrees(quote: str, source: str) -> bool:
    """Whether the source gives the quote's numbers: an interval where it has one, else its first numbers."""
    if source.startswith("by hand: "):
        return True
    ours, theirs = numbers(quote), stated(source)
    starts = range(len(theirs)) if " ~ " in source else [0] if " of " not in source or len(ours) > 1 else [0, 1]
    if re.fullmatch(INTERVAL, quote):
        starts = range(len(theirs))
    return bool(ours) and any(theirs[i : i + len(ours)] == ours for i in starts)


def page_text(path: Path) -> str:
    """The page as checked: of README what was found, of others everything."""
    text = path.read_text()
    return text[text.index("## What it found") : text.index("## Reproduce")] if path.name == "README.md" else text


@dataclass(frozen=True)
class Quote:
    """A quoted text, its source, and what stands around it: the paragraph, or the table's row and its column's head."""

    text: str
    source: str
    around: str


def filled(source: str, row: list[str], head: list[str], column: int) -> str:
    """The source of a cell of a table on the page, from a pattern: (K), (split), (reward), (steps), (column), (row)."""
    said = f"{head[column]} {row[0]}"
    steps = row[1] if head[1].strip() == "steps" else ""
    name = re.sub(r"^K = \d+, ", "", re.split(r":|, un", row[0])[0])
    rewards = {"JPEG": "jpeg-compressibility", "colourfulness": "colourfulness"}
    k = re.search(r"K = (\d+)", said)
    for placeholder, value in {
        "(K)": k[1] if k else "",
        "(split)": "unseen" if "unseen" in said else "seen",
        "(steps)": steps,
        "(reward)": next((name for word, name in rewards.items() if word in said), "alignment"),
        "(column)": head[column],
        "(row)": name.strip(),
    }.items():
        source = source.replace(placeholder, value)
    return source


def quotes(page: str) -> tuple[list[Quote], list[str]]:
    """All quotes with a source, and complaints: numbers without one, sources without a number."""
    found: list[Quote] = []
    wrong: list[str] = []
    position = 0
    for comment in [*COMMENT.finditer(page), None]:
        text = page[position : comment.start() if comment else len(page)]
        position = comment.end() if comment else len(page)
        more, complaints = _segment(text, comment[1] if comment else "")
        found += more
        wrong += complaints
    return found, wrong


def _segment(text: str, comment: str) -> tuple[list[Quote], list[str]]:
    """Quotes and complaints of the text between two comments."""
    # Targets of links, headings and code hold no quotes. A line of this is a paragraph or a row of a table.
    flat = re.sub(r"\]\([^)]*\)|^#.*$|`[^`]*`", lambda m: " " * len(m[0]), text, flags=re.M)
    flat = re.sub(r"(?<!\n)\n *(?!\n|\|| *- )", " ", flat)
    due = [m for m in QUOTE.finditer(flat) if m[0] not in FREE]
    found: list[Quote] = []
    wrong: list[str] = []
    spans: list[tuple[int, int]] = []
    at = 0

    def quote(start: int, end: int, source: str) -> None:
        nonlocal at
        found.append(Quote(flat[start:end], source, _around(flat, start)))
        spans.append((start, end))
        at = end

    for text_quoted, source in references(comment):
        if source.startswith("also ") and found:
            found.append(Quote(found[-1].text, source.removeprefix("also "), found[-1].around))
            continue
        following = [m for m in due if m.start() >= at]
        if text_quoted:
            start = flat.find(text_quoted, at)
            if start < 0:
                wrong.append(f"{text_quoted!r} is not quoted behind {flat[max(0, at - 40) : at]!r}")
            else:
                quote(start, start + len(text_quoted), source)
        elif not following:
            wrong.append(f"no number is left for {source}")
        elif source.startswith("table "):
            _, rows = _table_at(flat, following[0].start())
            choices = expanded(source.removeprefix("table "))
            inside = [m for m in following if m.start() < rows[-1][1]]
            for number, m in enumerate(inside):
                row, head, column = _cell_at(flat, m.start())
                quote(*m.span(), filled(choices[number % len(choices)], row, head, column))
        else:
            quote(*following[0].span(), source)
    wrong += [
        f"no source for {m[0]!r} in {flat[max(0, m.start() - 50) : m.end() + 10]!r}"
        for m in due
        if not all(
            any(start <= m.start() + n.start() and m.start() + n.end() <= end for start, end in spans)
            for n in re.finditer(NUMBER, m[0])
        )
    ]
    return found, wrong


def _table_at(flat: str, position: int) -> tuple[str, list[tuple[int, int]]]:
    """The head of the table around a position, and where its rows lie."""
    start = flat.rfind("\n\n", 0, position) + 2
    end = flat.find("\n\n", position)
    rows, at = [], start
    for line in flat[start : end if end >= 0 else len(flat)].split("\n"):
        rows.append((at, at + len(line)))
        at += len(line) + 1
    return flat[slice(*rows[0])], rows


def _cell_at(flat: str, position: int) -> tuple[list[str], list[str], int]:
    """The cells of the row around a position, those of the table's head, and the number of the position's cell."""
    head, rows = _table_at(flat, position)
    start, end = next(row for row in rows if row[0] <= position <= row[1])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (flat[start:end], head)]
    return cells[0], cells[1], flat.count("|", start, position) - 1


def _around(flat: str, position: int) -> str:
    start = flat.rfind("\n", 0, position) + 1
    if flat[start : start + 1] == "|":
        row, head, column = _cell_at(flat, position)
        return f"{head[0]} {head[column]} | {' | '.join(row)}"
    end = flat.find("\n", position)
    return flat[start : end if end >= 0 else len(flat)]


def strangers(quote: Quote) -> list[str]:
    """What a source is of and the text around its quote does not name: K (where any is named), steps, method."""
    source, rest = quote.source, QUOTE.sub("", quote.around.replace(quote.text, ""))
    if " ~ " in source or " | " not in source:
        return []
    name, block, row, column = source.rsplit(" | ", 3)
    found = []
    said = {
        k
        for listed in re.findall(r"K = (\d+(?:(?:, \d+)* (?:and|or) \d+)?)", quote.around)
        for k in re.findall(r"\d+", listed)
    }
    ks = set(re.findall(r"_k(\d+)|K = (\d+)", f"{name} {block} {row}"))
    found += [f"K = {k}" for pair in ks for k in pair if k and said and k not in said]
    if step := re.match(r"(\d+) step|.*, (\d+) sampling", column) or re.match(r"(\d+) step|.*, (\d+) sampling", block):
        steps = step[1] or step[2]
        found += [] if re.search(rf"\b{steps}\b", rest) else [f"{steps} steps"]
    methods = re.findall(r"SDPO-causal|SDPO|DDPO-dense|DDPO|REBEL|PRDP|D3PO", f"{block * (' above ' in block)} {row}")
    found += [method for method in methods if method not in quote.around]
    return found
