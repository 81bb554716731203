"""What is written about the study is what its tables say: every quoted number is tied to the cell that it is from.

How to write the ties: docs/statistics.md, "Numbers in the documentation".
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from support.quotes import ROOT, Quote, agrees, cells_of, numbers, page_text, quotes, strangers

PAGES = ("README.md", "docs/findings.md", "docs/findings_tuned.md")
INTERVALS = [
    Quote(found.text, found.source, found.around)
    for page in PAGES
    for found in quotes(page_text(ROOT / page))[0]
    if len(numbers(found.text)) == 3
]


def complaints(page: str) -> list[str]:
    """All that is wrong with a page's quotes."""
    found, wrong = quotes(page)
    wrong += [
        f"{quote.text!r} is not what {quote.source} says" for quote in found if not agrees(quote.text, quote.source)
    ]
    return wrong + [
        f"{quote.text!r} is from {quote.source}, but {name} is not named beside it"
        for quote in found
        for name in strangers(quote)
    ]


@pytest.mark.parametrize(
    ("page", "at_least"), [("README.md", 10), ("docs/findings.md", 150), ("docs/findings_tuned.md", 200)]
)
def test_every_quoted_number_is_its_cells(page, at_least):
    text = page_text(ROOT / page)
    assert len(quotes(text)[0]) >= at_least
    assert complaints(text) == []


def other_k(source: str) -> list[str]:
    return [re.sub(r"(_k|K = )\d+", rf"\g<1>{k}", source) for k in (4, 8, 20, 50)]


def other_method(source: str) -> list[str]:
    name, block, _, column = source.rsplit(" | ", 3)
    rows = (
        "SDPO",
        "SDPO-causal",
        "DDPO",
        "DDPO-dense",
        "REBEL",
        "PRDP",
        "D3PO",
        "SDPO (exact) minus SDPO",
        "DDPO-dense minus DDPO",
        "SDPO (last step) minus SDPO",
        "alignment, K = 4",
        "jpeg_compressibility, K = 20",
    )
    return [f"{name} | {block} | {row} | {column}" for row in rows]


def other_steps(source: str) -> list[str]:
    columns = [re.sub(r" \| (\d+ steps?|mean)$", f" | {k} step{'s' * (k > 1)}", source) for k in (1, 2, 4, 8, 16, 50)]
    return columns + [re.sub(r"\d+ sampling", f"{k} sampling", source) for k in (1, 4, 50)]


def other_prompts(source: str) -> list[str]:
    return [source.replace(" | seen", " | unseen"), source.replace(" | unseen", " | seen")]


@pytest.mark.parametrize(
    ("kind", "at_least"), [(other_k, 200), (other_method, 200), (other_steps, 150), (other_prompts, 80)]
)
def test_a_neighbours_value_is_refused(kind: Callable[[str], list[str]], at_least):
    """The value of another K, method, number of steps or split of prompts does not pass for any quote."""
    refused = 0
    for quote in INTERVALS:
        if " ~ " in quote.source:
            continue
        for source in kind(quote.source):
            try:
                cell = cells_of(source)[0]
            except LookupError:
                continue  # no such neighbour
            value = re.search(r"[+-]?\d\S* \[[^]]*\]", cell)
            if source != quote.source and value and value[0] != quote.text:
                assert not agrees(value[0], quote.source), (quote, source)
                assert not agrees(quote.text, source), (quote, source)
                refused += 1
    assert refused >= at_least


PAGE = """Of five seeds, at K = 20 DDPO-dense is above DDPO by +0.061 [+0.051, +0.071] on the mean; it is highest in
87 of 96 cells.

| minus SDPO | K = 4 | K = 20 |
|---|---|---|
| DDPO | +0.016 [+0.000, +0.033] | +0.013 [+0.002, +0.023] |
| REBEL | +0.015 [+0.003, +0.027] | +0.013 [+0.007, +0.020] |

At 50 steps SDPO minus DDPO is -0.028 [-0.042, -0.015] at K = 4; it is below it at 4 of 6 numbers of steps.

<!-- quotes
full/ablations_alignment_k20 | seen | DDPO-dense minus DDPO | mean
"87" full/order ~ DDPO-dense 87 (68)
"of 96" full/order ~ in how many of 96 cases
table full/differences_(reward)_k(K) | (split) | (row) | mean
full/order_paper | SDPO above DDPO, seen | alignment, K = 4 | 50 steps
contradicted of full/order_paper | SDPO above DDPO, seen | alignment, K = 4 | *
-->
"""


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("+0.061 [+0.051, +0.071]", "+0.028 [+0.019, +0.038]", "is not what full/ablations_alignment_k20"),  # K = 4's
        ("at K = 20 DDPO-dense", "at K = 4 DDPO-dense", "K = 20 is not named"),
        ("DDPO-dense is above", "REBEL is above", "DDPO-dense is not named"),
        ("87 of 96", "86 of 96", "'87' is not quoted"),
        ("87 of 96", "87 of 64", "'of 96' is not quoted"),
        ("| K = 4 | K = 20 |", "| K = 20 | K = 4 |", "is not what full/differences_alignment_k20"),
        ("| DDPO | +0.016", "| D3PO | +0.016", "is not what full/differences_alignment_k4 | seen | D3PO"),
        ("| REBEL |", "| REBEL, unseen prompts |", "is not what full/differences_alignment_k4 | unseen"),
        ("At 50 steps", "At 16 steps", "50 steps is not named"),
        ("SDPO minus DDPO is -0.028", "SDPO minus DDPO is +0.028", "is not what full/order_paper"),
        ("at 4 of 6 numbers", "at 5 of 6 numbers", "'5 of 6' is not what contradicted"),
        ("numbers of steps.", "numbers of steps, by 0.03.", "no source for '0.03'"),
        ("-0.028 [-0.042, -0.015]", "much", "is not what full/order_paper"),
        ("_k20 | seen", "_k4 | seen", "is not what full/ablations_alignment_k4"),
        ("K = 4 | 50 steps", "K = 4 | 16 steps", "is not what full/order_paper"),
        ("contradicted of", "supported of", "'4 of 6' is not what supported"),
    ],
)
def test_a_wrong_quote_is_noticed(right, wrong, complaint):
    assert complaints(PAGE) == []
    assert PAGE.count(right) == 1
    assert any(complaint in found for found in complaints(PAGE.replace(right, wrong)))


def test_a_source_that_is_not_there_is_named():
    with pytest.raises(LookupError, match="no column '3 steps' in full/order_paper"):
        complaints(PAGE.replace("K = 4 | 50 steps", "K = 4 | 3 steps"))
    with pytest.raises(LookupError, match="full/order does not say so"):
        complaints(PAGE.replace("DDPO-dense 87 (68)", "DDPO-dense 88 (68)"))
