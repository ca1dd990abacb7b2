"""A comparison of two output folders as one self-contained HTML page."""

from __future__ import annotations

import numpy as np

from hfray.runs.about import About
from hfray.runs.compare import CompareSettings, Comparison
from hfray.runs.contents import Lengths
from hfray.runs.report import flat, render


def page(settings: CompareSettings, result: Comparison) -> str:
    """The comparison as HTML."""
    from hfray.runs.charts import histogram

    first, second = result.sides
    edges = _edges(first.lengths, second.lengths)
    bars = {name: (_binned(side.lengths, edges), edges) for name, side in (("first", first), ("second", second))}
    charts = {"lengths": histogram(bars, "Tokens of answers", "tokens")} if first.lengths.number else {}
    words = _lengths([parting.words for parting in result.partings])
    if result.partings:
        charts["partings"] = histogram({"words": words.histogram()}, "Words before the texts part", "words")
    return render(
        "compare.html",
        result=result,
        first=first,
        second=second,
        charts=charts,
        words=words,
        characters=_lengths([parting.characters for parting in result.partings]),
        differences=differing_settings(first.about, second.about),
        path=settings.output.path,
    )


def differing_settings(first: About, second: About) -> list[tuple[str, str, str]]:
    """(key, first value, second value) of the settings that decide the text and differ."""
    a, b = (dict(flat(about.fingerprint)) for about in (first, second))
    return [(key, a.get(key, "–"), b.get(key, "–")) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def _lengths(values: list[int]) -> Lengths:
    lengths = Lengths()
    if values:
        lengths.add(np.array(values))
    return lengths


def _edges(first: Lengths, second: Lengths) -> np.ndarray:
    """Bin edges that both distributions share."""
    both = Lengths()
    for lengths in (first, second):
        both.add(np.flatnonzero(lengths.counts))
    return both.histogram()[1]


def _binned(lengths: Lengths, edges: np.ndarray) -> np.ndarray:
    padded = np.zeros(max(int(edges[-1]), len(lengths.counts)), dtype=np.int64)
    padded[: len(lengths.counts)] = lengths.counts
    return np.add.reduceat(padded, edges[:-1])
