"""JSON files and values into dataclasses: unknown keys are ignored, missing keys keep their defaults."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeVar

from hfray.data.output import OutputFolder

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def from_json(kind: type[T], values: object) -> T:
    """`values` as an instance of the dataclass `kind`.

    Raises:
        ValueError: a value has another type than its field; the message names the first such key.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from error


@functools.cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def load(output: OutputFolder, name: str, kind: type[T], remedy: str, key: str = "output.path") -> T | None:
    """The file `_hfray/name` as an instance of the dataclass `kind`, or None if there is no such file.

    Args:
        remedy: what to do about a damaged file, for the message.
        key: the setting that names the folder, for the message.

    Raises:
        SettingsError: the file cannot be read, is not JSON, or is not a `kind`.
    """
    values = output.read_json(name, remedy, key)
    if values is None:
        return None
    try:
        return from_json(kind, values)
    except ValueError as error:
        raise output.damaged(name, error, remedy, key) from error
