"""Settings of the online service."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from hfray.config.engine import STRICT, EngineSettings, PromptSettings
from hfray.config.workers import RaySettings, WorkerSettings


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServerSettings:
    """The online service: where it listens, who may use it, and how much it takes on at once.

    `api_keys` says where the keys are, never what they are: `env:NAME` or `file:PATH`, one or more keys between
    commas or line ends. `max_queue` counts completions that wait beyond what one engine runs at once.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: int | list[int] = 1
    model_name: str | None = None
    id_column: str | None = None
    api_keys: str | None = None
    allow_public: bool = False
    max_queue: int = Field(default=128, ge=0)
    max_request_bytes: int = Field(default=1 << 20, ge=1)
    body_timeout: float = Field(default=30.0, gt=0)
    reader_timeout: float = Field(default=60.0, gt=0)
    drain_seconds: float = Field(default=60.0, ge=0)
    hosts: list[str] = Field(default_factory=list)
    cors_origins: list[str] = Field(default_factory=list)

    def __post_init__(self) -> None:
        low, high = (self.replicas, self.replicas) if isinstance(self.replicas, int) else (*self.replicas, 0)[:2]
        if not 1 <= low <= high or (isinstance(self.replicas, list) and len(self.replicas) != 2):
            raise ValueError(
                f"serve.replicas={self.replicas!r}: must be a count >= 1 or [min, max] with 1 <= min <= max."
            )
        if self.api_keys is not None and not self.api_keys.startswith(("env:", "file:")):
            raise ValueError(  # the value may be a key itself: it is not repeated
                "serve.api_keys: must be env:NAME (an environment variable that holds the keys) or file:PATH."
            )
        if not (self.local or self.api_keys or self.allow_public):
            raise ValueError(
                f"serve.host={self.host}: others could reach it, and there are no API keys. Set serve.api_keys=env:NAME "
                "or file:PATH, or serve.allow_public=true to let in whoever asks."
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own, seen by itself alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServeSettings(EngineSettings):
    """The online service; `workers` is what one replica takes, and `serve.replicas` how many there are."""

    ROOT: ClassVar = "serve"

    prompt: PromptSettings
    serve: ServerSettings = Field(default_factory=ServerSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    emit: str | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "workers", dataclasses.replace(self.workers, size=self.serve.replicas))
