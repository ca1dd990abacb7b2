"""How two texts differ: where they part, and their differences marked as HTML."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from markupsafe import Markup, escape

WORDS_COMPARED = 400  # words of each text that are marked; difflib's time grows with their product


@dataclass(frozen=True, slots=True)
class Parting:
    """How much of two texts is equal from the start: in characters, and in words."""

    characters: int
    words: int


def parting(one: str, other: str) -> Parting:
    """Where two texts first differ. If one text begins with the other, they part at the end of the shorter text."""
    characters = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return Parting(characters, len(one[:characters].split()))


def mark(one: str, other: str) -> tuple[Markup, Markup]:
    """Both texts as HTML: <del> marks what only the first has, <ins> marks what only the second has."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (one, other))
    rest_a, rest_b = "".join(a[WORDS_COMPARED:]), "".join(b[WORDS_COMPARED:])
    first, second = Markup(), Markup()
    matcher = difflib.SequenceMatcher(None, a[:WORDS_COMPARED], b[:WORDS_COMPARED], autojunk=False)
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        mine, theirs = escape("".join(a[a0:a1])), escape("".join(b[b0:b1]))
        first += mine if kind == "equal" else Markup("<del>{}</del>").format(mine) if mine else ""
        second += theirs if kind == "equal" else Markup("<ins>{}</ins>").format(theirs) if theirs else ""
    return first + escape(rest_a), second + escape(rest_b)
