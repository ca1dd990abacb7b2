"""Settings of the online service."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import ClassVar

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from hfray.config.engine import STRICT, EngineSettings, PromptSettings
from hfray.config.workers import RaySettings, WorkerSettings, check_gpus, keyword_values


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServerSettings:
    """The online service: where it listens, who may use it, and how much it accepts at once.

    Attributes:
        api_keys: where the keys are, never the keys themselves: `env:NAME` or `file:PATH`. Commas or line ends separate
            several keys.
        max_queue: completions that may wait, beyond those that one engine runs at once.
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
    header_timeout: float = Field(default=30.0, gt=0)
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
            raise ValueError(  # without the value, which may be a key
                "serve.api_keys: must be env:NAME (an environment variable that holds the keys) or file:PATH."
            )
        if not (self.local or self.api_keys or self.allow_public):
            raise ValueError(
                f"serve.host={self.host}: other machines can reach this address, and there are no API keys. Set "
                "serve.api_keys=env:NAME or file:PATH, or serve.allow_public=true to accept every client."
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address or host name is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServeSettings(EngineSettings):
    """The online service.

    Attributes:
        workers: what one replica takes; `workers.size` always equals `serve.replicas`.
    """

    ROOT: ClassVar[str] = "serve"

    prompt: PromptSettings
    serve: ServerSettings = Field(default_factory=ServerSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    emit: str | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gpus(self.workers, self.gpus)

    @model_validator(mode="before")
    @classmethod
    def _one_worker_per_replica(cls, given: object) -> object:
        values = keyword_values(given)
        serve, workers = values.get("serve", {}), values.get("workers")
        replicas = getattr(serve, "replicas", ServerSettings.replicas)
        if isinstance(serve, dict):
            replicas = serve.get("replicas", replicas)
        if isinstance(workers, WorkerSettings):
            values["workers"] = dataclasses.replace(workers, size=replicas)
        elif isinstance(given, ArgsKwargs):
            values.setdefault("workers", WorkerSettings(size=replicas))
        elif isinstance(workers, dict | None):
            values["workers"] = {**(workers or {}), "size": replicas}
        return ArgsKwargs((), values) if isinstance(given, ArgsKwargs) else values
