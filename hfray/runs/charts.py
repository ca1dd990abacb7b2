"""Small charts as inline SVG, made by matplotlib. Colours are CSS variables of the page, for light and dark mode."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

# matplotlib needs colours. Each of these is a placeholder that the finished SVG replaces by a variable of the page.
TEXT, GRID, PAPER = "#010203", "#010204", "#010205"
SERIES = ("#010206", "#010207", "#010208", "#010209", "#01020a", "#01020b")
VARIABLES = {TEXT: "--muted", GRID: "--line", PAPER: "--paper"}
VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)}
SIZE = (4.8, 2.3)  # inches of 72 points: small, so that the text can be read on a phone
# Room around the axes, as shares of the size, for ticks of five characters. matplotlib can measure the text instead,
# but then drawing takes almost twice as long.
ROOM = {"left": 0.155, "right": 0.955, "bottom": 0.205, "top": 0.95}
LEGEND_ROW = 0.095
LEGEND_COLUMNS = 3


def line_chart(
    times: Sequence[float],
    series: Mapping[str, Sequence[float]],
    label: str,
    unit: str,
    breaks: Sequence[float] = (),
    top: float | None = None,
    whole: bool = False,
) -> Markup:
    """Lines over seconds.

    Args:
        series: name to values, each as long as `times`; at most as many as SERIES.
        breaks: times at which one run ended and the next began.
        top: the upper end of the value axis, if it is known.
        whole: the values are whole numbers, so the ticks are too.
    """
    figure, axes = _figure(label)
    divisor, time_unit = (3600, "hours") if times[-1] > 7200 else (60, "minutes") if times[-1] > 180 else (1, "seconds")
    for (name, values), colour in zip(series.items(), SERIES, strict=False):
        axes.plot(np.asarray(times) / divisor, values, color=colour, linewidth=1.6, label=name, solid_joinstyle="round")
    if len(series) == 1:
        axes.fill_between(
            np.asarray(times) / divisor, next(iter(series.values())), color=SERIES[0], alpha=0.12, linewidth=0
        )
    for moment in breaks:
        axes.axvline(moment / divisor, color=TEXT, linewidth=0.9, linestyle=(0, (3, 3)))
    if whole:
        axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, top)
    axes.set_xlim(0, times[-1] / divisor)
    axes.set_xlabel(time_unit)
    axes.set_ylabel(unit)
    if len(series) > 1:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98), "ncols": min(LEGEND_COLUMNS, len(series))}
        axes.legend(**place, frameon=False, labelcolor=TEXT, fontsize=10)
        figure.subplots_adjust(top=ROOM["top"] - LEGEND_ROW * math.ceil(len(series) / LEGEND_COLUMNS))
    return _svg(figure, label)


def histogram(bars: dict[str, tuple[np.ndarray, np.ndarray]], label: str, unit: str) -> Markup:
    """Distributions, name to (counts, edges): one is drawn as bars, two are drawn as steps on the same axes."""
    figure, axes = _figure(label)
    titles = {}
    for (name, (counts, edges)), colour in zip(bars.items(), SERIES, strict=False):
        if len(bars) > 1:
            axes.stairs(counts, edges, color=colour, linewidth=1.6, label=name)
            continue
        for i, patch in enumerate(axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour)):
            patch.set_edgecolor(PAPER)
            patch.set_linewidth(0.6)
            patch.set_gid(f"bar-{i}")
            titles[f"bar-{i}"] = f"{edges[i]:,} to {edges[i + 1] - 1:,} {unit}: {counts[i]:,} rows"
    axes.set_xlabel(unit)
    axes.set_ylabel("rows")
    axes.set_ylim(0, None)
    axes.margins(x=0.01)
    if len(bars) > 1:
        axes.legend(frameon=False, labelcolor=TEXT, fontsize=10)
    return _svg(figure, label, titles)


def _figure(label: str) -> tuple[Any, Any]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    settings: dict[Any, Any] = {
        "font.size": 10.5,
        "text.color": TEXT,
        "axes.labelcolor": TEXT,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
    }
    with rc_context(settings):
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(**ROOM)
        axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, min_n_ticks=2, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def _svg(figure: Any, label: str, titles: dict[str, str] | None = None) -> Markup:
    """The figure as an SVG element with the page's colours and fonts, without ids that another chart may use."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for name, title in (titles or {}).items():
        text = text.replace(f'<g id="{name}">', f"<g><title>{html.escape(title)}</title>", 1)
    text = re.sub(r' id="(?!m[0-9a-f]+"|p[0-9a-f]+")[^"]*"', "", text)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
    return Markup(re.sub(r"\n\s*", "\n", text))  # noqa: S704  made of numbers and escaped labels


def _short(value: float) -> str:
    """1500000 as 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            divisor = 1e3 if letter == "k" else size
            return f"{value / divisor:g}{letter}"
    return f"{value:,.10g}"
