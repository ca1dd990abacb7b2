"""The settings of the current call, so that LangChain's cache distinguishes calls with different settings."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

NOT_SETTINGS = ("tags", "metadata", "run_name", "run_id")  # arguments of `generate` that do not change the text

_settings: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar("call settings", default=None)


@contextlib.contextmanager
def identified_by(kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, `call_settings` returns the settings among a call's keywords."""
    token = _settings.set({name: value for name, value in sorted(kwargs.items()) if name not in NOT_SETTINGS})
    try:
        yield
    finally:
        _settings.reset(token)


def call_settings() -> Mapping[str, Any]:
    """The settings of the current call; empty outside of a call."""
    return _settings.get() or {}
