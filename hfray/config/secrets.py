"""No credential in what is written down: settings in run.json and logs."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from hfray.urls import credentials_in

SECRET_KEY = re.compile(r"(.*_)?(token|secret|password|api_keys?|access_key)", re.I)


def to_plain(settings: Any) -> dict[str, Any]:
    """Settings as nested plain values, for run.json; tokens and passwords in them (`model.kwargs.token`) as ***."""
    return _redacted(dataclasses.asdict(settings))


def _no_secrets(key: str, paths: str | list[str]) -> None:
    """Raise ValueError where a URL carries a credential: settings are written to run.json and shown by Ray."""
    for path in [paths] if isinstance(paths, str) else paths:
        secret = credentials_in(path)
        if secret:
            raise ValueError(
                f"{key}: the URL holds {secret}, and would be written to run.json and logs. Leave it out, and set the "
                "cloud's own environment variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
                "GOOGLE_APPLICATION_CREDENTIALS, ...) on every node."
            )


def _redacted(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [_redacted(item) for item in value]
    return "***" if value and isinstance(value, str | list) and SECRET_KEY.fullmatch(name) else value
