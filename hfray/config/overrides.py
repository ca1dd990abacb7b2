"""What a user types after `key=`: text for keys that take text, Hydra's grammar for all others."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union

OVERRIDE = re.compile(r"(?P<key>(\+\+|\+)?[\w@/.-]+)=(?P<value>.*)", re.DOTALL)
STAND_IN = "text_typed_as_override_{}_"
# Keys that take text and that no settings class declares: `generation` is an open mapping, and composing replaces
# `prompt.template_file` by the file's text.
UNDECLARED = {
    "generation.stop": {str, list, type(None)},
    "generation.stop_strings": {str, list, type(None)},
    "prompt.template_file": {str, type(None)},
}


class TypedText:
    """Overrides whose values are text, held back from Hydra's grammar and put back into the composed values.

    Hydra's grammar reads braces, commas, colons and `#`, and OmegaConf resolves `${...}`; a prompt template may hold
    any of these. Hydra composes a stand-in for the text, so neither ever sees it.

    Args:
        kind: the settings dataclass whose declared types say which keys take text.
    """

    def __init__(self, kind: type) -> None:
        self._types = {**dict(declared_types(kind)), **UNDECLARED}
        self._texts: list[str] = []

    def hold_back(self, override: str) -> str:
        """The override as Hydra gets it: with a stand-in where its value is text, else unchanged."""
        match = OVERRIDE.fullmatch(override)
        if match is None or not self._is_text(match["key"].lstrip("+"), match["value"], override):
            return override
        self._texts.append(match["value"])
        return f"{match['key']}={STAND_IN.format(len(self._texts) - 1)}"

    def put_back(self, value: Any) -> Any:
        """Composed plain values with the texts in the places of their stand-ins."""
        if isinstance(value, dict):
            return {key: self.put_back(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.put_back(item) for item in value]
        if isinstance(value, str):  # a preset may have interpolated the stand-in into a longer text
            for number, text in enumerate(self._texts):
                value = value.replace(STAND_IN.format(number), text)
        return value

    def _is_text(self, key: str, value: str, override: str) -> bool:
        kinds = self._types.get(key) or self._types.get(f"{key.rpartition('.')[0]}.*") or ()
        if str not in kinds or (value == "null" and type(None) in kinds):
            return False
        if list in kinds and value.startswith("[") and value.endswith("]"):
            return False
        if dict in kinds and value.startswith("{") and value.endswith("}"):
            return False
        return not _is_quoted(value, override)


def declared_types(kind: type, prefix: str = "") -> Iterator[tuple[str, set[type]]]:
    """Every key of a settings dataclass with the plain types that it takes; `key.*` for the values of a mapping."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        key = f"{prefix}{field.name}"
        parts = list(_alternatives(hints[field.name]))
        yield key, {typing.get_origin(part) or part for part in parts}
        for part in parts:
            if dataclasses.is_dataclass(part):
                yield from declared_types(typing.cast(type, part), f"{key}.")
            elif typing.get_origin(part) in (dict, Mapping):
                values = _alternatives(typing.get_args(part)[1])
                yield f"{key}.*", {typing.get_origin(value) or value for value in values}


def quoted(text: str) -> str:
    """Text as Hydra's grammar takes it, between quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _alternatives(hint: Any) -> Iterator[Any]:
    """The members of a union, of nested ones too, without their annotations."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _alternatives(part)
    else:
        yield hint


def _is_quoted(value: str, override: str) -> bool:
    """Whether the whole value is one string between quotes, as Hydra's grammar has it."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return False
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        return isinstance(OverridesParser.create().parse_override(override)._value, QuotedString)
    except HydraException:
        return False
