"""The online service on Ray Serve. `hfray.serve:app` is the application builder for `serve run` and manifests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfray.serve.deployment import app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    if name != "app":
        raise AttributeError(f"module 'hfray.serve' has no attribute {name!r}")
    from hfray.serve.deployment import app

    return app
