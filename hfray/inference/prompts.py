"""A record to a prompt: a LangChain template, or the user's own LangChain object, over the record's columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hfray.completion import Prompt
from hfray.errors import RequestError

if TYPE_CHECKING:
    from hfray.config.engine import PromptSettings
    from hfray.engines.base import Tokenizer


ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


class RecordPrompt:
    """Renders the prompts of one job.

    Args:
        settings: template or target, chat or not.
        tokenizer: the engine's, for its chat template; may be None where only `variables` is wanted.

    Raises:
        ValueError: the template does not parse; the message names the key.
    """

    def __init__(self, settings: PromptSettings, tokenizer: Tokenizer | None = None) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self._runnable = _load_target(settings.target) if settings.target else _parse(settings)
        self.variables: list[str] = sorted(getattr(self._runnable, "input_variables", []))
        # LangChain has checked it to be plain named fields, which str.format fills in the same, in a tenth of the time.
        plain = not settings.target and settings.format == "f-string"
        self._format = settings.template.format if plain else getattr(self._runnable, "format", None)

    def render(self, record: Mapping[str, Any]) -> Prompt:
        """The prompt of one record.

        Raises:
            RequestError: a column that the template names is missing or null, or the template fails on this record.
        """
        for name in self.variables:
            if record.get(name) is None:
                state = "null" if name in record else "missing"
                raise RequestError(f"column {name!r} is {state}, and the prompt needs it")
        try:
            if self._settings.target:
                value = self._runnable.invoke(dict(record))
            else:
                value = self._format(**{name: record[name] for name in self.variables})
        except Exception as error:
            raise RequestError(f"the prompt template fails on this row: {type(error).__name__}: {error}") from error
        return self._finish(value)

    def _finish(self, value: Any) -> Prompt:
        if not isinstance(value, str):
            messages = value.to_messages() if hasattr(value, "to_messages") else value
            text_only = hasattr(value, "text") and isinstance(getattr(value, "text", None), str)
            if text_only and not self._settings.chat:
                return Prompt(value.text)
            if isinstance(messages, list):
                return self._of_messages(messages)
            raise RequestError(f"prompt.target gave a {type(value).__name__}, and not a prompt")
        if not self._settings.chat:
            return Prompt(value)
        system = [{"role": "system", "content": self._settings.system}] if self._settings.system else []
        return self._chat([*system, {"role": "user", "content": value}])

    def _of_messages(self, messages: list[Any]) -> Prompt:
        """Through the model's chat template; where it has none, as LangChain writes messages for an LLM."""
        try:
            return self._chat([{"role": ROLES.get(m.type, m.type), "content": str(m.content)} for m in messages])
        except ValueError:
            if self._settings.chat:
                raise
        from langchain_core.messages import get_buffer_string

        return Prompt(get_buffer_string(messages))

    def _chat(self, messages: list[dict[str, str]]) -> Prompt:
        return Prompt(self._tokenizer.chat(messages), special_tokens_in_text=True)


def _parse(settings: PromptSettings) -> Any:
    from langchain_core.prompts import PromptTemplate

    if settings.template is None:
        raise ValueError("prompt.template is not given. Add `prompt.template=...`, or prompt.target._target_=... .")
    try:
        return PromptTemplate.from_template(settings.template, template_format=settings.format)
    except Exception as error:
        raise ValueError(
            f"prompt.template={settings.template!r}: is no {settings.format} template ({error}). "
            "Mend it, or set prompt.format."
        ) from error


def _load_target(target: dict[str, Any]) -> Any:
    from hydra.utils import get_object, instantiate

    try:
        name = target["_target_"]
        found = get_object(name)
        return found if hasattr(found, "invoke") and len(target) == 1 else instantiate(target)
    except Exception as error:
        raise ValueError(
            f"prompt.target={target!r}: cannot be loaded ({error}). "
            "Name an importable LangChain prompt or Runnable, or a function that returns one, as _target_."
        ) from error
