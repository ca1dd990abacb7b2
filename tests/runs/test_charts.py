"""The charts are inline SVG with the page's colours."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from hfray.runs import charts
from hfray.runs.charts import histogram, line_chart


def test_a_line_chart_is_safe_and_uses_the_colours_of_the_page():
    svg = line_chart([0, 10, 400], {"a": [1, 2, 3], "b": [3, 2, 1]}, 'rows & "more"', "rows/s", breaks=[5.0])
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert "#0102" not in svg
    assert "rows &amp; &quot;more&quot;" in svg
    assert "minutes" in svg


def test_the_bars_of_a_histogram_have_titles():
    svg = histogram({"prompts": (np.array([3, 4]), np.array([0, 5, 10]))}, "lengths", "tokens")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "0 to 4 tokens: 3 rows" in svg
    assert "5 to 9 tokens: 4 rows" in svg


def test_equal_data_gives_an_equal_chart():
    both = [line_chart([0, 1, 2], {"a": [1.0, 2.0, 1500.0]}, "label", "unit", top=2000, whole=True) for _ in range(2)]
    assert both[0] == both[1]


@pytest.mark.parametrize("pools", [1, 2, 6])
@pytest.mark.parametrize("largest", [1.0, 9_500.0, 14_500.0, 750_000.0])
def test_all_text_is_inside_the_chart(pools, largest, monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "_svg", lambda figure, *_: figures.append(figure))
    times, edges = [0, 1800, 7000 + largest / 100], np.linspace(0, largest, 5)
    line_chart(times, {f"pool-{i}": [0, largest, 0] for i in range(pools)}, "label", "tokens/s")
    histogram({f"{i}": (np.array([1, 2, 3, largest]), edges) for i in range(pools)}, "lengths", "tokens")
    for figure in figures:
        box = figure.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= charts.SIZE[0]
        assert box.y1 <= charts.SIZE[1]
