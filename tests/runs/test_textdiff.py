"""Where two texts part, and their differences as HTML."""

import pytest

from hfray.runs import textdiff
from hfray.runs.textdiff import Parting, mark, parting


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        ("a b c", "a b d", Parting(4, 2)),
        ("a", "a b", Parting(1, 1)),
        ("", "x", Parting(0, 0)),
        ("same", "same", Parting(4, 1)),
    ],
)
def test_where_texts_part(one, other, where):
    assert parting(one, other) == where


def test_differences_are_marked_and_escaped():
    first, second = mark("one & two", "one & three")
    assert first == "one &amp; <del>two</del>"
    assert second == "one &amp; <ins>three</ins>"


def test_only_the_first_words_are_compared(monkeypatch):
    monkeypatch.setattr(textdiff, "WORDS_COMPARED", 1)
    assert mark("a <x>", "b <y>") == ("<del>a</del> &lt;x&gt;", "<ins>b</ins> &lt;y&gt;")
