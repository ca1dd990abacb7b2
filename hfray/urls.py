"""Paths and cloud URLs as text: their parts, and no secret in any of them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, quote

# `?endpoint_override=...&scheme=http` are options of the filesystem; a lone `?` is part of a glob.
URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>.*?)(?P<query>\?\w+=.*)?", re.S)


def is_url(path: str) -> bool:
    """Whether this is a URL, and not a path on this machine."""
    return "://" in path


def absolute(path: str) -> str:
    """A URL as it is; a path of this machine from its root."""
    return path if is_url(path) else str(Path(path).expanduser().absolute())


def without_query(path: str) -> str:
    """The path or URL without the filesystem's options: what ends in the file's own ending."""
    match = URL.fullmatch(path)
    return path.removesuffix(match["query"] or "") if match else path


def file_address(root: str, file: str) -> str:
    """The address, for `open_filesystem`, of a file (a path in the filesystem) found under the path or URL `root`."""
    match = URL.fullmatch(root)
    if match is None or match["scheme"] == "file":
        return file
    inside = file if file.startswith("/") else "/" + file.partition("/")[2]  # a bucket's name is in the authority
    return f"{match['scheme']}://{match['authority']}{quote(inside)}{match['query'] or ''}"


def credentials_in(path: str) -> str | None:
    """What of a URL is a secret, told without saying it ("a password"); None where nothing is."""
    match = URL.fullmatch(path)
    if match is None:
        return None
    if ":" in match["authority"].rpartition("@")[0]:
        return "a password"
    for name, _ in parse_qsl((match["query"] or "").removeprefix("?")):
        if re.search(r"secret|token|password|signature|credential|access_?key|^sig$", name, re.I):
            return f"the secret `{name}`"
    return None
