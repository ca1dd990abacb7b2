"""Records to prompts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from jinja2 import TemplateError
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda

from hfray.completion import Prompt
from hfray.config.engine import PromptSettings
from hfray.engines.fake import FakeTokenizer
from hfray.errors import RequestError, SettingsError
from hfray.inference.prompts import RecordPrompt

CHAT = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
TEXT = PromptTemplate.from_template("Q: {question}")


NOT_PROMPTS = {
    "number": 7,
    "nothing": None,
    "list of text": ["Why?"],
    "list of a message and a number": [HumanMessage("Why?"), 7],
    "empty list": [],
    "dict": {"role": "user", "content": "Why?"},
}
ODD = RunnableLambda(lambda record: NOT_PROMPTS[record["question"]])


class NoChatTemplate(FakeTokenizer):
    has_chat_template = False

    def chat(self, messages):
        raise ValueError("no chat template")


class StrictChatTemplate(FakeTokenizer):
    """Refuses some messages, as templates do with `raise_exception`."""

    def chat(self, messages):
        if messages[-1]["content"] == "odd":
            raise TemplateError("roles must alternate")
        return super().chat(messages)


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


@pytest.mark.parametrize(
    "template",
    [
        "{a}",
        "no field",
        "{{a}} {b}",
        "{a!r:>5}",
        "{a b}",
        "{ünï}",
        "{a.b}",
        "{a[0]}",
        "{0}",
        "{}",
        "{a:{b}}",
        "{a!x}",
        "{a",
    ],
)
def test_f_string_templates_are_those_that_langchain_accepts(template):
    """Plain templates are parsed without LangChain, because its import is slow."""
    try:
        expected = PromptTemplate.from_template(template).input_variables
    except ValueError:
        with pytest.raises(ValueError, match=r"prompt\.template="):
            RecordPrompt(PromptSettings(template=template))
    else:
        assert RecordPrompt(PromptSettings(template=template)).variables == sorted(expected)


def test_plain_templates_need_no_langchain():
    code = (
        "import sys; from hfray.inference.prompts import RecordPrompt; from hfray.config.engine import PromptSettings"
    )
    code += "; RecordPrompt(PromptSettings(template='{a}')).render({'a': 1}); sys.exit('langchain_core' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


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


def test_without_a_chat_template_chat_true_is_refused_before_any_row():
    with pytest.raises(SettingsError, match=r"prompt\.chat=true: the model has no chat template"):
        RecordPrompt(PromptSettings(template="{question}", chat=True), NoChatTemplate())


def test_without_a_chat_template_messages_are_written_as_text():
    prompt = render({"question": "Why?"}, NoChatTemplate(), target=target("CHAT"))
    assert prompt == Prompt("System: Be brief.\nHuman: Why?")


@pytest.mark.parametrize("settings", [{"target": target("CHAT")}, {"template": "{question}", "chat": True}])
def test_a_chat_template_that_fails_on_a_row_is_the_rows_error(settings):
    prompts = RecordPrompt(PromptSettings(**settings), StrictChatTemplate())
    with pytest.raises(RequestError, match="chat template fails on this row: TemplateError: roles must alternate"):
        prompts.render({"question": "odd"})
    assert "Why?" in prompts.render({"question": "Why?"}).text


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("returned", NOT_PROMPTS)
def test_a_target_that_returns_no_prompt_is_the_rows_error(returned, chat):
    with pytest.raises(RequestError, match=r"prompt\.target returned a"):
        render({"question": returned}, target=target("ODD"), chat=chat)


def test_mistakes_name_the_key():
    with pytest.raises(ValueError, match=r"prompt\.template='\{a': not a valid f-string template"):
        RecordPrompt(PromptSettings(template="{a"))
    with pytest.raises(ValueError, match=r"prompt\.template is not given"):
        RecordPrompt(PromptSettings())
    with pytest.raises(ValueError, match=r"prompt\.target=.*cannot be loaded"):
        RecordPrompt(PromptSettings(target=target("MISSING")))
