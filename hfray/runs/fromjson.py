"""JSON files and values into dataclasses: unknown keys are ignored, missing keys keep their defaults."""

from __future__ import annotations

import functools
import json
from typing import Any, TypeVar

from hfray.data.output import OWN, OutputFolder
from hfray.errors import SettingsError

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
def _adapter(kind: type[Any]) -> Any:
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
    values = read_json(output, name, remedy, key)
    if values is None:
        return None
    try:
        return from_json(kind, values)
    except ValueError as error:
        raise damaged(output, name, error, remedy, key) from error


def read_json(output: OutputFolder, name: str, remedy: str, key: str = "output.path") -> object:
    """The JSON value in `_hfray/name`, or None if there is no such file. Raises SettingsError as `load` does."""
    try:
        with output.filesystem.open_input_stream(f"{output.root}/{OWN}/{name}") as file:
            return json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(output, name, error, remedy, key) from error


def damaged(output: OutputFolder, name: str, error: Exception, remedy: str, key: str = "output.path") -> SettingsError:
    """The error that says that `_hfray/name` cannot be used."""
    return SettingsError(f"{key}={output.path}: {OWN}/{name} cannot be read or is damaged ({error}). {remedy}.")
