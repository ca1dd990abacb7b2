"""Refuses an output folder that overlaps the input: a run would delete its input, or read its own output."""

from __future__ import annotations

import os

from hfray.config.batch import BatchSettings
from hfray.data.listing import WILDCARDS, split_pattern
from hfray.data.paths import open_filesystem
from hfray.errors import SettingsError
from hfray.urls import is_url


def check_overlap(settings: BatchSettings) -> None:
    """Compare every input path with the output folder; symlinks are resolved.

    Raises:
        SettingsError: input and output are the same folder, or one contains the other.
    """
    output = _location(settings.output.path, "output.path")
    paths = [settings.input.path] if isinstance(settings.input.path, str) else settings.input.path
    for path in paths:
        folder, is_deep = _searched_folder(path)
        if _contains(output, folder) or (is_deep and _contains(folder, output)):
            raise SettingsError(
                f"output.path={settings.output.path}: overlaps input.path={path}, so that the run would delete its input "
                "or read its own output. Name an output folder outside the input, and an input outside the output."
            )


def _searched_folder(path: str) -> tuple[str, bool]:
    """The folder or file that an input path starts from, and whether it includes subfolders."""
    location = _location(path, "input.path")
    if not any(character in location for character in WILDCARDS) or os.path.exists(location):
        return location, True
    head, tail = split_pattern(location)
    return head, "**" in tail


def _location(path: str, key: str) -> str:
    """A comparable form: the real path of a local path, the host and path of a URL."""
    root = open_filesystem(path, key)[1]
    if is_url(path) and not path.startswith("file:"):
        return f"{path.partition(':')[0]}://{root.strip('/')}"
    return os.path.realpath(root)


def _contains(folder: str, other: str) -> bool:
    """Whether `other` is the folder itself or below it."""
    return other == folder or other.startswith(folder.rstrip("/") + "/")
