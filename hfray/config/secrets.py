"""What counts as a secret, and how settings stay free of secrets in run.json, in reports and in logs."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from hfray.urls import URL

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SECRET_NAME = re.compile(
    r"secret|passw(or)?d|credential|signature|(api|access)[_-]?keys?|token$|^sig$", re.IGNORECASE
)  # `token` only at the end: `max_tokens` and `eos_token_id` are no secrets


def is_secret_name(name: str) -> bool:
    """Whether a value under this name (a key of the settings, an option in a URL) is a credential."""
    return SECRET_NAME.search(name) is not None


def to_plain(settings: DataclassInstance) -> dict[str, object]:
    """Settings as nested plain values, for run.json. Secrets (`model.kwargs.token`) become `***`."""
    return {key: _redacted(value, key) for key, value in dataclasses.asdict(settings).items()}


def credentials_in(path: str) -> str | None:
    """What kind of credential a URL contains ("a password"), without its value; None if it contains none."""
    match = URL.fullmatch(path)
    if match is None:
        return None
    if ":" in match["authority"].rpartition("@")[0]:
        return "a password"
    options = parse_qsl((match["query"] or "").removeprefix("?"))
    return next((f"the secret `{name}`" for name, _ in options if is_secret_name(name)), None)


def check_no_credentials(key: str, paths: str | list[str]) -> None:
    """Raise ValueError if a URL contains a credential: run.json and Ray's job list would show it."""
    for path in [paths] if isinstance(paths, str) else paths:
        secret = credentials_in(path)
        if secret:
            raise ValueError(
                f"{key}: the URL contains {secret}, which would be written to run.json and to logs. Remove it, and set "
                "the cloud's own environment variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
                "GOOGLE_APPLICATION_CREDENTIALS, ...) on every node."
            )


def _redacted(value: object, name: str) -> object:
    if isinstance(value, dict):
        return {key: _redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [_redacted(item, "") for item in value]
    return "***" if value and isinstance(value, str | list) and is_secret_name(name) else value
