"""Plain values into settings dataclasses, checked.

Every error is a SettingsError that names the key, its value and the remedy. Nothing expensive is imported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from hfray.config.declared import Place, declared_types, locate
from hfray.errors import SettingsError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")


def build(kind: type[T], values: Mapping[str, object]) -> T:
    """A settings dataclass of `kind` from plain values. Raises SettingsError, naming key, value and remedy."""
    try:
        return TypeAdapter(kind).validate_python(values, strict=False)
    except ValidationError as error:
        raise SettingsError(explain(kind, error.errors()[0])) from error


def explain(kind: type, error: ErrorDetails) -> str:
    """A pydantic error of a settings dataclass as a sentence for the user."""
    place, value, reason = locate(kind, error["loc"]), error["input"], error["msg"]
    if error["type"] == "value_error":  # from our own checks, which name their section but do not know their pool
        words = reason.removeprefix("Value error, ")
        return re.sub(rf"\b{place.section}\.", f"{place.section_key}.", words) if place.section else words
    if error["type"] == "unexpected_keyword_argument":
        return f"{place.key}={value!r}: there is no such key. {nearest_key(kind, place)}"
    if error["type"] == "union_tag_not_found":
        return f"{place.key}={value!r}: the name is missing. Add it, as in {place.key}={{name: openvino, ...}}."
    if error["type"] == "missing":
        return f"{place.key} is not given. Add `{place.key}=...` to the command."
    return f"{place.key}={value!r}: {reason[0].lower()}{reason[1:]}. Set {place.key} to such a value."


def nearest_key(kind: type, place: Place) -> str:
    """The remedy for an unknown key: the key that the user probably meant, or else the keys that exist there."""
    name = place.key.rpartition(".")[2]
    siblings = {key.rpartition(".")[2]: key for key in place.siblings}
    meant = [siblings[close] for close in difflib.get_close_matches(name, siblings, n=1)]
    meant += [key for key, _ in declared_types(kind) if key.rpartition(".")[2] == name and key != place.key]
    if meant:
        return f"Did you mean {meant[0]}?"
    return f"Known keys: {', '.join(place.siblings)}."
