"""What a user types after `key=`: keys that take text get the text as typed, all others go through Hydra's grammar."""

from __future__ import annotations

import re
from typing import TypeVar, cast

from hfray.config.declared import declared_types

OVERRIDE = re.compile(r"(?P<key>(\+\+|\+)?[\w@/.-]+)=(?P<value>.*)", re.DOTALL)
T = TypeVar("T")
STAND_IN = "text_typed_as_override_{}_"
# Keys that take text although no settings class says so: `generation` is an open mapping, composing replaces
# `prompt.template_file` by the file's text, and Hydra's grammar cannot read a JSON Schema.
UNDECLARED: dict[str, set[object]] = {
    "generation.stop": {str, list, type(None)},
    "generation.stop_strings": {str, list, type(None)},
    "prompt.template_file": {str, type(None)},
    "response.schema": {str, type(None)},
}


class TypedText:
    """Keeps text away from Hydra's grammar: a stand-in replaces each text, and the composed values get it back.

    Hydra's grammar reads braces, commas, colons and `#`, and OmegaConf resolves `${...}`; a prompt template may contain
    any of these.

    Args:
        kind: the settings dataclass whose declared types say which keys take text.
    """

    def __init__(self, kind: type) -> None:
        self._types = {**dict(declared_types(kind)), **UNDECLARED}
        self._texts: list[str] = []

    def hold_back(self, override: str) -> str:
        """The override for Hydra: with a stand-in if its value is text, else unchanged."""
        match = OVERRIDE.fullmatch(override)
        if match is None or not self._is_text(match["key"].lstrip("+"), match["value"], override):
            return override
        self._texts.append(match["value"])
        return f"{match['key']}={STAND_IN.format(len(self._texts) - 1)}"

    def put_back(self, value: T) -> T:
        """Composed plain values with each stand-in replaced by its text."""
        return cast(T, self._put_back(value))

    def _put_back(self, value: object) -> object:
        if isinstance(value, dict):
            return {key: self._put_back(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._put_back(item) for item in value]
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


def quoted(text: str) -> str:
    """Text between quotes, as Hydra's grammar reads it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _is_quoted(value: str, override: str) -> bool:
    """Whether Hydra's grammar reads the whole value as one quoted string."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return False
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        return isinstance(OverridesParser.create().parse_override(override)._value, QuotedString)
    except HydraException:
        return False
