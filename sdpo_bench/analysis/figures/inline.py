"""Figures as parts of a page: panels that the page itself lays out."""

from __future__ import annotations

import html
import re

from sdpo_bench.analysis.figures.style import WIDTH

INK = {"#000000": "currentColor", "#ffffff": "var(--page)", "#e6e6e6": "var(--line)", "#555555": "var(--soft)"}


PHONE = 200  # points: panels up to this width can be read on a phone with two beside each other


def inline(svg: str, number: int, alt: str) -> str:
    """A figure (`style.svg`) as HTML: its title, and each entry of its legend and each panel as an SVG, which the style
    sheet lays out. Ids of its own by `number`, the page's colours (so that it turns dark), and `alt`, which must be
    escaped."""

    def adapted(part: re.Match[str]) -> str:  # tags and style sheets, and not the texts that are read
        tag = re.sub(r'( id="|href="#| class="|\.(?=s\d+\{))', rf"\1f{number}-", part[0])
        tag = re.sub(r"<style type.*?</style>| xmlns(:xlink)?=\"[^\"]*\"", "", tag, flags=re.S)
        return re.sub("|".join(INK), lambda colour: INK[colour[0]], tag)

    svg = re.sub(r"<style.*?</style>|<[^>]*>", adapted, svg, flags=re.S)
    svg = re.sub(r"</g>(<defs></defs>)?</svg>\s*$", "", svg)
    head, *parts = re.split(r'(?=<g id="f\d+-(?:title|legend|panel)_)', svg)
    title, legend, panels, width = "", "", "", 72 * WIDTH
    for part in parts:
        _, kind, box, content, _ = re.split(r'^<g id="f\d+-([a-z]+)_([-\d_]+)">(.*)</g>$', part, flags=re.S)
        if kind == "title":
            title = re.sub(r"<[^>]*>", "", content)
        elif kind == "legend":
            legend += "".join(map(_entry, re.findall(r".*?</text>", content, re.S)))
        else:
            panels += f'<svg class="panel" viewBox="{box.replace("_", " ")}">{content}</svg>'
            width = float(box.split("_")[2])
    columns, narrow = round(72 * WIDTH / width), 2 if width <= PHONE else 1
    rules = "".join(re.findall(r"<style>.*?</style>", head, re.S))
    return (
        f'<div class="parts" role="img" aria-label="{alt}" style="--columns: {columns}; --narrow: {narrow}">'
        f'<p class="title">{title}</p><div class="legend">{legend}</div>{panels.replace(">", f">{rules}", 1)}</div>'
    )


def _entry(drawn: str) -> str:
    """An entry of a legend: a line or a marker, 22 points wide, 8 points before its text."""
    x, y, text = re.findall(r'<text[^>]* x="([^"]*)" y="([^"]*)">(.*?)</text>', drawn)[-1]
    width = 30 + 6.4 * len(html.unescape(text)) + 8  # about a character's width
    box = f"{float(x) - 30:.0f} {float(y) - 11:.0f} {width:.0f} 15"
    return f'<svg width="{width:.0f}" height="15" viewBox="{box}">{drawn}</svg>'
