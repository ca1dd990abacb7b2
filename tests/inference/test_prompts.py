"""Records to prompts."""

from __future__ import annotations

import pytest
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

from hfray.completion import Prompt
from hfray.config.engine import PromptSettings
from hfray.engines.fake import FakeTokenizer
from hfray.errors import RequestError
from hfray.inference.prompts import RecordPrompt

CHAT = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
TEXT = PromptTemplate.from_template("Q: {question}")


def returns_a_number(_):
    return 7


class NoChatTemplate(FakeTokenizer):
    def chat(self, messages):
        raise ValueError("no chat template")


def render(record, tokenizer=None, **settings):
    return RecordPrompt(PromptSettings(**settings), tokenizer or FakeTokenizer()).render(record)


def target(name):
    return {"_target_": f"{__name__}.{name}"}


@pytest.mark.parametrize(
    ("template", "kind"),
    [("{a} and {b}", "f-string"), ("{{ a }} and {{ b }}", "jinja2"), ("{{a}} and {{b}}", "mustache")],
)
def test_templates_of_every_format(template, kind):
    assert render({"a": 1, "b": "x"}, template=template, format=kind) == Prompt("1 and x")


def test_variables_are_known_without_a_tokenizer():
    assert RecordPrompt(PromptSettings(template="{b} {a}")).variables == ["a", "b"]


@pytest.mark.parametrize(("record", "state"), [({}, "missing"), ({"a": None}, "null")])
def test_a_missing_or_null_column_is_the_rows_error(record, state):
    with pytest.raises(RequestError, match=f"column 'a' is {state}"):
        render(record, template="{a}")


def test_a_template_that_fails_on_a_row_is_the_rows_error():
    with pytest.raises(RequestError, match="fails on this row: ValueError"):
        render({"a": "text"}, template="{a:d}")


def test_chat_puts_the_system_message_first():
    prompt = render({"a": "Hi"}, template="{a}", chat=True, system="Be brief.")
    assert prompt == Prompt("system: Be brief.\nuser: Hi\nassistant: ", special_tokens_in_text=True)


def test_targets_may_be_chat_or_text_prompts():
    chat = render({"question": "Why?"}, target=target("CHAT"), chat=True)
    assert chat == Prompt("system: Be brief.\nuser: Why?\nassistant: ", special_tokens_in_text=True)
    assert render({"question": "Why?"}, target=target("TEXT")) == Prompt("Q: Why?")


def test_without_a_chat_template_chat_true_is_an_error():
    with pytest.raises(ValueError, match="no chat template"):
        render({"question": "Why?"}, NoChatTemplate(), target=target("CHAT"), chat=True)


def test_mistakes_name_the_key():
    with pytest.raises(ValueError, match=r"prompt\.template='\{a': not a valid f-string template"):
        RecordPrompt(PromptSettings(template="{a"))
    with pytest.raises(ValueError, match=r"prompt\.template is not given"):
        RecordPrompt(PromptSettings())
    with pytest.raises(ValueError, match=r"prompt\.target=.*cannot be loaded"):
        RecordPrompt(PromptSettings(target=target("MISSING")))
