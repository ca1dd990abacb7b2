"""From a record to a prompt: a template, or the user's own LangChain object, over the record's columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from hfray.completion import Prompt
from hfray.engines.base import NO_CHAT_TEMPLATE
from hfray.errors import RequestError, SettingsError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.prompts import PromptTemplate

    from hfray.config.engine import PromptSettings
    from hfray.engines.base import Tokenizer


ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


class Invocable(Protocol):
    """A LangChain Runnable, as far as this file needs one."""

    def invoke(self, value: dict[str, object], /) -> object: ...


class RecordPrompt:
    """Renders the prompts of one job.

    Args:
        settings: template or target, chat or not.
        tokenizer: the engine's, for its chat template; may be None if only `variables` is needed.

    Raises:
        ValueError: the template does not parse; the message names the key.
        SettingsError: `prompt.chat` is true, and the model has no chat template.
    """

    def __init__(self, settings: PromptSettings, tokenizer: Tokenizer | None = None) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        if settings.chat and tokenizer is not None and not tokenizer.has_chat_template:
            raise SettingsError(NO_CHAT_TEMPLATE)
        if settings.target:
            target = _load_target(settings.target)
            self.variables: list[str] = sorted(getattr(target, "input_variables", []))
            self._fill: Callable[[Mapping[str, object]], object] = lambda record: target.invoke(dict(record))
            return
        template = _parse(settings)
        self.variables = names = sorted(template.input_variables)
        # LangChain has checked that an f-string template contains plain named fields only. str.format fills them in
        # the same way, ten times as fast.
        fill: Callable[..., str] = template.template.format if settings.format == "f-string" else template.format
        self._fill = lambda record: fill(**{name: record[name] for name in names})

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


def _parse(settings: PromptSettings) -> PromptTemplate:
    from langchain_core.prompts import PromptTemplate

    if settings.template is None:
        raise ValueError("prompt.template is not given. Add `prompt.template=...`, or prompt.target._target_=... .")
    try:
        return PromptTemplate.from_template(settings.template, template_format=settings.format)
    except Exception as error:
        raise ValueError(
            f"prompt.template={settings.template!r}: not a valid {settings.format} template ({error}). "
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
