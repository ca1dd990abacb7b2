"""Thoughts of reasoning models, split from their answers."""

from __future__ import annotations

import pytest

from hfray.reasoning import split_reasoning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nTwo and two.\n</think>\n\nFour", ("Two and two.", "Four")),
        ("Two and two.\n</think>\nFour", ("Two and two.", "Four")),  # the chat template opened the thought
        ("\n<think></think>Four", ("", "Four")),
        ("<think>cut off", ("cut off", "")),
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
        ("[THINK]a[/THINK]b", ("a", "b")),
        ("<thinking>a</thinking>\nb\n", ("a", "b\n")),
        ("Four", (None, "Four")),
        (" a < b and <b>bold</b>", (None, " a < b and <b>bold</b>")),
        ("", (None, "")),
    ],
)
def test_the_thought_and_the_answer(text, expected):
    assert split_reasoning(text) == expected
