"""What the settings dataclasses declare: every key with its types, and the key that a pydantic error location means."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Union

from pydantic import Tag


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A place in the settings.

    Attributes:
        key: how a user writes it, as in `workers[1].backend.options`.
        section: the name of the nearest field that is a settings dataclass; its class begins its messages with it.
        siblings: the keys of the same section; empty if the section takes any key.
    """

    key: str
    section: str = ""
    siblings: tuple[str, ...] = ()

    @property
    def section_key(self) -> str:
        """The key of the section: the key itself, or the part before the field of the section that it names."""
        is_section = re.search(rf"(^|\.){self.section}(\[\d+\])?$", self.key)
        return self.key if is_section else self.key.rpartition(".")[0]


def declared_types(kind: type, prefix: str = "") -> Iterator[tuple[str, set[object]]]:
    """Every key of a settings dataclass with the plain types that it takes; `key.*` for the values of a mapping."""
    for name, hint in _fields(kind).items():
        key, parts = f"{prefix}{name}", list(map(_plain, alternatives(hint)))
        yield key, {typing.get_origin(part) or part for part in parts}
        for part in parts:
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                yield from declared_types(part, f"{key}.")
            elif typing.get_origin(part) in (dict, Mapping):
                values = list(map(_plain, alternatives(typing.get_args(part)[1])))
                yield f"{key}.*", {typing.get_origin(value) or value for value in values}


def locate(kind: type, location: Sequence[str | int]) -> Place:
    """Follow the location of a pydantic error through the declared types of `kind`.

    A location has one part for every field, list index and mapping key; where the declared type is a union, one more
    part names the member of the union, which is not a part of the user's key.
    """
    hint: object = kind
    place = Place("")
    for part in location:
        members = [member for member in alternatives(hint) if member is not type(None)]
        if len(members) > 1:
            hint = next((member for member in members if part in _names_in_locations(member)), object)
            continue
        hint, place = _step(_plain(members[0]), place, part)
    return place


def alternatives(hint: object) -> Iterator[object]:
    """The members of a union and of the unions inside it; a type that is no union is its own only member."""
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    if typing.get_origin(inner) in (Union, types.UnionType):
        for part in typing.get_args(inner):
            yield from alternatives(part)
    else:
        yield hint


def _step(hint: object, place: Place, part: str | int) -> tuple[object, Place]:
    """The type and the place of one part of a location, below a value of type `hint`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        known = _fields(hint)
        below = [f"{place.key}.{name}" if place.key else name for name in known]
        key = f"{place.key}.{part}" if place.key else str(part)
        child = known.get(str(part), object)
        return child, Place(key, str(part) if _holds_dataclass(child) else place.section, tuple(below))
    if isinstance(part, int):
        return next(iter(typing.get_args(hint)), object), Place(f"{place.key}[{part}]", place.section)
    if part == "[key]":  # pydantic's mark for an error of a mapping's key, not of its value
        return object, place
    return next(iter(typing.get_args(hint)[1:]), object), Place(f"{place.key}.{part}", place.section)


def _fields(kind: type) -> dict[str, object]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _holds_dataclass(hint: object) -> bool:
    members = map(_plain, alternatives(hint))
    return any(dataclasses.is_dataclass(inner) for part in members for inner in (part, *typing.get_args(part)))


def _names_in_locations(member: object) -> set[object]:
    """What pydantic calls a member of a union: its tag, the value of its discriminator, or its type."""
    if typing.get_origin(member) is Annotated:
        return {extra.tag for extra in typing.get_args(member)[1:] if isinstance(extra, Tag)}
    if isinstance(member, type) and dataclasses.is_dataclass(member):
        literals = (hint for hint in _fields(member).values() if typing.get_origin(hint) is Literal)
        return {value for hint in literals if len(typing.get_args(hint)) == 1 for value in typing.get_args(hint)}
    return {str(member)}


def _plain(hint: object) -> object:
    """A type without its annotations."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
