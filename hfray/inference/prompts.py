"""From a record to a prompt: a template, or the user's own LangChain object, over the record's columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Formatter
from typing import TYPE_CHECKING, Protocol, cast

from hfray.completion import Prompt
from hfray.engines.base import NO_CHAT_TEMPLATE
from hfray.errors import RequestError, SettingsError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.prompts import PromptTemplate

    from hfray.config.engine import PromptFormat, PromptSettings
    from hfray.config.response import ResponseSettings
    from hfray.engines.base import Tokenizer


SCHEMA = "response_schema"  # the variable of a template that becomes the JSON Schema of the answers
ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


class Invocable(Protocol):
    """A LangChain Runnable, as far as this file needs one."""

    def invoke(self, value: dict[str, object], /) -> object: ...


class RecordPrompt:
    """Renders the prompts of one job.

    Args:
        settings: template or target, chat or not.
        tokenizer: the engine's, for its chat template; may be None if only `variables` is needed.
        response: the form of the answers. A JSON Schema takes the place of `{response_schema}` in the prompt.

    Attributes:
        variables: the columns that the prompt needs; empty if a target does not name them.

    Raises:
        ValueError: the template does not parse; the message names the key.
        SettingsError: `prompt.chat` is true, and the model has no chat template.
    """

    def __init__(
        self,
        settings: PromptSettings,
        tokenizer: Tokenizer | None = None,
        response: ResponseSettings | None = None,
    ) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        schema = None if response is None else response.schema
        self._extra = {} if schema is None else {SCHEMA: json.dumps(schema, ensure_ascii=False)}
        if settings.chat and tokenizer is not None and not tokenizer.has_chat_template:
            raise SettingsError(NO_CHAT_TEMPLATE)
        if settings.target:
            target = _load_target(settings.target)
            self.variables: Sequence[str] = self._columns(getattr(target, "input_variables", []))
            self._fill: Callable[[Mapping[str, object]], object] = lambda record: target.invoke(
                {**record, **self._extra}
            )
            return
        if settings.template is None:
            raise ValueError("prompt.template is not given. Add `prompt.template=...`, or prompt.target._target_=... .")
        # Once the fields are known to be plain names, str.format fills them in as LangChain does, ten times as fast.
        fill: Callable[..., str] = settings.template.format
        names = _plain_fields(settings.template) if settings.format == "f-string" else None
        if names is None:
            template = _parse(settings.template, settings.format)
            names = sorted(template.input_variables)
            fill = fill if settings.format == "f-string" else template.format
        self.variables = columns = self._columns(names)
        self._fill = lambda record: fill(**{name: record[name] for name in columns}, **self._extra)

    def render(self, record: Mapping[str, object]) -> Prompt:
        """The prompt of one record.

        Raises:
            RequestError: a column of the template is missing or null, the template or the model's chat template fails
                on this record, or the target returns something that is no prompt.
        """
        for name in self.variables:
            if record.get(name) is None:
                state = "null" if name in record else "missing"
                raise RequestError(f"column {name!r} is {state}, and the prompt needs it")
        try:
            value = self._fill(record)
        except Exception as error:
            raise RequestError(f"the prompt template fails on this row: {type(error).__name__}: {error}") from error
        return self._finish(value)

    def _columns(self, variables: Iterable[str]) -> list[str]:
        """The variables that are columns, sorted."""
        return sorted(name for name in variables if name not in self._extra)

    def _finish(self, value: object) -> Prompt:
        if isinstance(value, str):
            if not self._settings.chat:
                return Prompt(value)
            system = [{"role": "system", "content": self._settings.system}] if self._settings.system else []
            return self._chat([*system, {"role": "user", "content": value}])
        text = getattr(value, "text", None)
        if isinstance(text, str) and not self._settings.chat:
            return Prompt(text)
        to_messages = getattr(value, "to_messages", None)
        messages = to_messages() if to_messages is not None else value
        return self._of_messages(_checked_messages(messages))

    def _of_messages(self, messages: Sequence[BaseMessage]) -> Prompt:
        """Apply the model's chat template. Without one, write the messages as LangChain does for an LLM."""
        if self._tokenizer is None or self._tokenizer.has_chat_template:
            return self._chat([{"role": ROLES.get(m.type, m.type), "content": str(m.content)} for m in messages])
        from langchain_core.messages import get_buffer_string

        return Prompt(get_buffer_string(messages))

    def _chat(self, messages: list[dict[str, str]]) -> Prompt:
        if self._tokenizer is None:
            raise TypeError("a chat prompt needs the engine's tokenizer")
        try:
            text = self._tokenizer.chat(messages)
        except Exception as error:  # a chat template is the model's own code and raises errors of its own
            reason = f"{type(error).__name__}: {error}"
            raise RequestError(f"the model's chat template fails on this row: {reason}") from error
        return Prompt(text, special_tokens_in_text=True)


def _checked_messages(value: object) -> list[BaseMessage]:
    """What `prompt.target` returned, if it is a list of messages. Raises RequestError if not."""
    from langchain_core.messages import BaseMessage

    if not isinstance(value, list):
        raise RequestError(f"prompt.target returned a {type(value).__name__}, which is not a prompt")
    strange = next((item for item in value if not isinstance(item, BaseMessage)), None)
    if strange is not None or not value:
        of = f"with a {type(strange).__name__} in it" if value else "without items"
        raise RequestError(f"prompt.target returned a list {of}, not text or a list of LangChain messages")
    return value


def _plain_fields(template: str) -> list[str] | None:
    """The sorted fields of an f-string template, None if one of them is more than a name.

    LangChain parses and checks the others. Importing LangChain takes half a second in every process.
    """
    try:
        fields = [found[1:] for found in Formatter().parse(template) if found[1] is not None]
    except ValueError:
        return None
    names = {name for name, _, _ in fields if name is not None}
    plain = all("{" not in (spec or "") and conversion in (None, "r", "s", "a") for _, spec, conversion in fields)
    return sorted(names) if plain and all(name.isidentifier() for name in names) else None


def _parse(template: str, kind: PromptFormat) -> PromptTemplate:
    from langchain_core.prompts import PromptTemplate

    try:
        return PromptTemplate.from_template(template, template_format=kind)
    except Exception as error:
        raise ValueError(
            f"prompt.template={template!r}: not a valid {kind} template ({error}). "
            "Fix the template, or set prompt.format."
        ) from error


def _load_target(target: Mapping[str, object]) -> Invocable:
    from hydra.utils import get_object, instantiate

    try:
        found = get_object(str(target["_target_"]))
        loaded = found if hasattr(found, "invoke") and len(target) == 1 else instantiate(target)
    except Exception as error:
        raise ValueError(
            f"prompt.target={target!r}: cannot be loaded ({error}). "
            "Name an importable LangChain prompt or Runnable, or a function that returns one, as _target_."
        ) from error
    return cast("Invocable", loaded)
