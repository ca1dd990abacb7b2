"""The settings of a run: composed by `hfray.config.compose`, checked here, and plain frozen dataclasses ever after.

Every error is a SettingsError that names the key, its value and the remedy; nothing expensive is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hfray.config.batch import BatchSettings, CostSettings, ErrorSettings, InputSettings, OutputSettings
from hfray.config.engine import (
    DeviceSettings,
    FakeBackend,
    ModelSettings,
    OpenVINOBackend,
    PromptSettings,
    TransformersBackend,
)
from hfray.config.serve import ServerSettings, ServeSettings
from hfray.config.workers import PoolSettings, RaySettings, WorkerSettings
from hfray.errors import SettingsError

T = TypeVar("T")


def build(kind: type[T], values: dict[str, Any]) -> T:
    """Settings dataclass of `kind` from plain values. Raises SettingsError, naming key, value and remedy."""
    try:
        return TypeAdapter(kind).validate_python(values, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(_explain_field(first, kind)) from error


def known_keys() -> list[str]:
    """All keys that a command may set, for the nearest to a wrong one."""
    keys = []
    for section in (*dataclasses.fields(BatchSettings), *dataclasses.fields(ServeSettings)):
        kinds = [section.type] if dataclasses.is_dataclass(section.type) else []
        if section.name == "backend":
            kinds = [OpenVINOBackend, TransformersBackend, FakeBackend]
        kinds = kinds or [_SECTIONS.get(section.name)]
        keys.append(section.name)
        keys += [f"{section.name}.{f.name}" for kind in kinds if kind for f in dataclasses.fields(kind)]
    return keys


_SECTIONS = {
    "model": ModelSettings,
    "device": DeviceSettings,
    "prompt": PromptSettings,
    "input": InputSettings,
    "output": OutputSettings,
    "workers": WorkerSettings,
    "errors": ErrorSettings,
    "cost": CostSettings,
    "serve": ServerSettings,
    "ray": RaySettings,
}


TAGS = (
    "openvino",
    "transformers",
    "vllm",
    "fake",
    "workers",
    "pools",
    "int",
    "str",
    "float",
    "list[int]",
    "literal['auto']",
)


def _explain_field(error: Any, kind: type) -> str:
    names = [str(part) for part in error["loc"] if not str(part).startswith("function-")]
    section, *names = names or [""]
    pool = ""
    if names[:1] == ["pools"] and len(names) > 1:
        pool, names = f"workers[{names[1]}].", names[2:]
    names = [name for name in names if name not in TAGS]
    key, value, reason = ".".join([section, *names]), error.get("input"), error["msg"]
    shown = f"{pool}{'.'.join(names)}".rstrip(".") if pool else key
    if error["type"] == "value_error":  # raised by our own checks, which name their keys
        reason = reason.removeprefix("Value error, ")
        return re.sub(r"\bworkers\.", pool, re.sub(r"\b(device|model)\.", rf"{pool}\1.", reason)) if pool else reason
    if error["type"] == "unexpected_keyword_argument":
        known = [*known_keys(), *(f"workers.{f.name}" for f in dataclasses.fields(PoolSettings) if pool)]
        close = difflib.get_close_matches(key, known, n=1)
        meant = [name.replace("workers.", pool) if pool else name for name in close]
        return f"{shown}={value!r}: there is no such key. " + (f"Did you mean {meant[0]}?" if meant else "See --help.")
    if error["type"] == "union_tag_not_found":
        return f"{shown}={value!r}: does not say which. Add its name, as in {shown}={{name: openvino, ...}}."
    if error["type"] == "missing":
        return f"{shown} is not given. Add `{shown}=...` to the command."
    return f"{shown}={value!r}: {reason[0].lower()}{reason[1:]}. Set {shown} to such a value."
