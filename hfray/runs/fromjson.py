"""Plain JSON values into dataclasses: unknown keys are ignored, missing keys keep their defaults."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

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
