"""Prompt and text of a call: prefix, full text, and spaces before punctuation."""

from __future__ import annotations

from hfray.completion import Completion
from hfray.langchain.call import Call, tidy
from hfray.params import GenerationParams


def call(**options) -> Call:
    defaults = {"full_text": True, "clean_up": False, "add_special_tokens": True, "prefix": "", "sample": 0}
    return Call(params=GenerationParams(), **{**defaults, **options})


def test_the_prompt_precedes_the_completion_only_if_asked():
    completion = Completion(text=" there", finish_reason="stop")
    assert call().text("Hello", completion) == "Hello there"
    assert call(full_text=False).text("Hello", completion) == " there"
    assert call().text("Hello", Completion()) == "Hello"


def test_the_prefix_is_prepended_and_not_returned():
    with_prefix = call(prefix="Once. ")
    assert with_prefix.prompt("Hello").text == "Once. Hello"
    assert with_prefix.text("Hello", Completion(text="!")) == "Hello!"


def test_special_tokens():
    assert not call().prompt("Hello").special_tokens_in_text
    assert call(add_special_tokens=False).prompt("Hello").special_tokens_in_text


def test_spaces_before_punctuation_are_removed_where_prompt_and_completion_meet():
    assert call(clean_up=True).text("Hello", Completion(text=" . It 's I .")) == "Hello. It's I."
    assert call(clean_up=True, full_text=False).text("Hello", Completion(text=" !")) == "!"
    assert tidy("Is n't it ? I 'm") == "Isn't it? I'm"
