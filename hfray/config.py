"""The settings of a run: composed by `hfray.composition`, checked here, and plain frozen dataclasses ever after.

Every error is a SettingsError that names the key, its value and the remedy; nothing expensive is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from hfray.errors import SettingsError
from hfray.params import GenerationParams
from hfray.urls import credentials_in

STRICT = ConfigDict(extra="forbid", strict=True)
SECRET_KEY = re.compile(r"(.*_)?(token|secret|password|api_keys?|access_key)", re.I)
POOL_GROUPS = ("backend", "device", "model")  # that a pool may have of its own, as a mapping or a choice by name
T = TypeVar("T")
Task = Literal["text-generation", "text2text-generation", "summarization", "translation"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSettings:
    """Which model; the fields are those of `from_pretrained`."""

    source: str
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    kwargs: dict[str, Any] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        _no_secrets("model.source", self.source)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OpenVINOBackend:
    """OpenVINO GenAI's continuous batching; `ov_config` goes to OpenVINO untouched."""

    name: Literal["openvino"]
    ov_config: dict[str, Any] = Field(default_factory=dict)
    weight_format: Literal["fp32", "fp16", "int8", "int4"] = "fp32"
    group_size: int | None = None
    batch_size: int | None = Field(default=None, ge=1)
    batch_tokens: int = Field(default=512, ge=1)
    kv_cache_gib: float | None = Field(default=None, gt=0)
    prefix_caching: bool = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TransformersBackend:
    """transformers and torch; `attention` is `attn_implementation`; None: sdpa, reading shared key-value heads once.

    `kv_cache_gib` and `prefix_caching` are those of `paged`, transformers' own continuous batching.
    """

    name: Literal["transformers"]
    attention: str | None = None
    batch_size: int | None = Field(default=None, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)
    paged: bool = False
    kv_cache_gib: float | None = Field(default=None, gt=0)
    prefix_caching: bool = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VLLMBackend:
    """vLLM's engine; `options` are its `EngineArgs`, passed through untouched."""

    name: Literal["vllm"]
    options: dict[str, Any] = Field(default_factory=dict)
    batch_size: int | None = Field(default=None, ge=1)
    batch_tokens: int | None = Field(default=None, ge=1)
    kv_cache_gib: float | None = Field(default=None, gt=0)
    prefix_caching: bool = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FakeBackend:
    """No model: deterministic text, and faults on demand (`hfray.engines.fake`)."""

    name: Literal["fake"]
    batch_size: int | None = Field(default=None, ge=1)
    tokens_per_step: int = Field(default=1 << 20, ge=1)
    step_seconds: float = Field(default=0.0, ge=0)
    context_length: int = Field(default=1 << 20, ge=1)
    fail_on: str | None = None
    die_on: str | None = None
    hang_on: str | None = None
    freeze_on: str | None = None
    answer_log: str | None = None
    hold_after: int = Field(default=0, ge=0)
    hold_until: str | None = None


Backend = OpenVINOBackend | TransformersBackend | VLLMBackend | FakeBackend


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeviceSettings:
    """Where the model runs: `index` -1 CPU, n the n-th GPU; `map` an accelerate device map; `name` OpenVINO's."""

    index: int | None = Field(default=None, ge=-1)
    map: str | dict[str, Any] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.map is not None and self.index is not None and self.index >= 0:
            raise ValueError(
                f"device.index={self.index} and device.map={self.map!r} are both given: one GPU, or a map over several. "
                "Drop one of them."
            )

    @property
    def uses_gpu(self) -> bool:
        """Whether an engine needs a CUDA GPU from Ray (an Intel GPU under OpenVINO is `name`, and none of these)."""
        return self.map not in (None, "cpu") or (self.index is not None and self.index >= 0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptSettings:
    """How a record becomes a prompt: a LangChain template, or `target`, a LangChain object of the user's own."""

    template: str | None = None
    format: Literal["f-string", "jinja2", "mustache"] = "f-string"
    chat: bool = False
    system: str | None = None
    target: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InputSettings:
    """The table: files, folders or globs, local or in the cloud."""

    path: str | list[str]
    format: Literal["parquet", "jsonl", "csv", "text"] | None = None
    limit: int | None = Field(default=None, ge=1)
    id_column: str | None = None
    columns: list[str] | None = None

    def __post_init__(self) -> None:
        _no_secrets("input.path", self.path)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OutputSettings:
    """The output folder and how it is written.

    `rows_per_file` bounds a file's rows; `flush_seconds` bounds how long finished rows wait to be written, and so
    what a crash costs beyond the rows in flight.
    """

    path: str
    resume: bool = True
    overwrite: bool = False
    retry_errors: bool = False
    rows_per_file: int = Field(default=100_000, ge=1)
    flush_seconds: float = Field(default=30.0, gt=0)

    def __post_init__(self) -> None:
        _no_secrets("output.path", self.path)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WorkerSettings:
    """The actor pool: `size` n, [min, max] or as many workers as the nodes carry, one engine in each; the rest is what
    one worker takes.
    """

    size: int | list[int] | Literal["auto"] = "auto"
    cpus: int | Literal["auto"] = "auto"
    gpus: float | Literal["auto"] = "auto"
    resources: dict[str, float] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    step_timeout: float = Field(default=600.0, gt=0)
    start_timeout: float = Field(default=3600.0, gt=0)
    rows_per_block: int | None = Field(default=None, ge=1)

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not 1 <= low <= high or (isinstance(self.size, list) and len(self.size) != 2):
            raise ValueError(
                f"workers.size={self.size!r}: must be a count >= 1, [min, max] with 1 <= min <= max, or 'auto'."
            )
        if self.cpus != "auto" and self.cpus < 1:
            raise ValueError(f"workers.cpus={self.cpus}: must be 'auto' or at least 1.")

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most workers; `auto` is one here, until `hfray.cluster.sized` has seen the nodes."""
        if self.size == "auto":
            return (1, 1)
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[-1])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PoolSettings(WorkerSettings):
    """One of several kinds of workers: what one takes, and what it runs where that is not the job's own."""

    size: int | list[int] | Literal["auto"] = 1  # auto would have each pool take the whole of the nodes they share
    name: str | None = None
    backend: Annotated[Backend, Field(discriminator="name")] | None = None
    device: DeviceSettings | None = None
    model: ModelSettings | None = None

    @property
    def workers(self) -> WorkerSettings:
        """The pool without what it runs."""
        return WorkerSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(WorkerSettings)})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ErrorSettings:
    """How many failed rows a run puts up with."""

    max_fraction: float = Field(default=0.05, ge=0, le=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CostSettings:
    """What a run costs: `per_worker_hour` in whatever currency, for the plan and the report."""

    per_worker_hour: float | None = Field(default=None, ge=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RaySettings:
    """Where Ray runs: an address, "auto" for the cluster this machine belongs to, "local" for one of our own."""

    address: str | None = None


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
    drain_seconds: float = Field(default=60.0, ge=0)

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
class EngineSettings:
    """All that decides an engine and its text: what `load_engine` takes, for every way of running it."""

    model: ModelSettings
    task: Task = "text-generation"
    backend: Backend = Field(discriminator="name")
    device: DeviceSettings = Field(default_factory=DeviceSettings)
    generation: dict[str, Any] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task == "text-generation" and (self.params.num_beams or 1) > 1:
            raise ValueError(
                f"generation.num_beams={self.params.num_beams}: beam search runs for sequence-to-sequence tasks only. "
                "Drop it, or sample with generation.temperature."
            )
        if self.backend.name == "transformers" and self.backend.paged:
            self._check_paged()

    def _check_paged(self) -> None:
        beyond = self.params.beyond_greedy
        if self.task != "text-generation":
            beyond = f"task={self.task}"
        elif self.device.map is not None:
            beyond = f"device.map={self.device.map}"
        elif beyond is not None:
            beyond = f"generation.{beyond}"
        if beyond is not None:
            raise ValueError(
                f"{beyond}: backend.paged=true is text-generation on one device, greedy and no more. "
                "Use backend.paged=false."
            )

    @property
    def params(self) -> GenerationParams:
        """The generation settings, checked."""
        return GenerationParams.from_mapping(self.generation)


# One kind of workers, or a list of several.
Workers = Annotated[
    Annotated[WorkerSettings, Tag("workers")] | Annotated[list[PoolSettings], Tag("pools")],
    Discriminator(lambda value: "pools" if isinstance(value, list) else "workers"),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BatchSettings(EngineSettings):
    """A batch job; `workers` is one kind of workers, or a list of pools of them. A list of one is that one."""

    ROOT: ClassVar = "batch"  # the file in conf/ that composes them

    prompt: PromptSettings
    input: InputSettings
    output: OutputSettings
    workers: Workers = Field(default_factory=WorkerSettings)
    errors: ErrorSettings = Field(default_factory=ErrorSettings)
    cost: CostSettings = Field(default_factory=CostSettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    plan: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.workers, list):
            return
        _check_pools(self.workers)
        if len(self.workers) == 1:
            pool = self.workers[0]
            for section in POOL_GROUPS:
                object.__setattr__(self, section, getattr(pool, section) or getattr(self, section))
            object.__setattr__(self, "workers", pool.workers)

    @property
    def pools(self) -> dict[str, BatchSettings]:
        """By name the job as the workers of each pool run it, in the order of `workers`; without pools, itself."""
        if not isinstance(self.workers, list):
            return {"": self}
        found: dict[str, BatchSettings] = {}
        for number, pool in enumerate(self.workers):
            own = {name: getattr(pool, name) or getattr(self, name) for name in POOL_GROUPS}
            name = pool.name or own["backend"].name
            name = name if name not in found else f"{name}-{number}"
            found[name] = dataclasses.replace(self, workers=pool.workers, **own)
        return found

    @property
    def start_timeout(self) -> float:
        """Seconds to wait for the first worker of all."""
        return max(pool.workers.start_timeout for pool in self.pools.values())

    @property
    def rows_per_block(self) -> int | None:
        """Rows handed to a worker at a time, where it is set; one number for all, as the table has one cut."""
        return next((p.workers.rows_per_block for p in self.pools.values() if p.workers.rows_per_block), None)


def _check_pools(pools: list[PoolSettings]) -> None:
    if not pools:
        raise ValueError("workers=[]: names no pool. List at least one, as in workers='[{size: 2}]', or leave it out.")
    cuts = {pool.rows_per_block for pool in pools} - {None}
    if len(cuts) > 1:
        raise ValueError(
            f"workers: rows_per_block is {' here and '.join(map(str, sorted(cuts)))} there. A block is cut before it is "
            "known who takes it: give one number, in one of the pools."
        )
    names = [pool.name for pool in pools if pool.name]
    for number, pool in enumerate(pools):
        if pool.name and names.count(pool.name) > 1:
            raise ValueError(f"workers[{number}].name={pool.name}: is the name of two pools. Give each its own.")


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


def build(kind: type[T], values: dict[str, Any]) -> T:
    """Settings dataclass of `kind` from plain values. Raises SettingsError, naming key, value and remedy."""
    try:
        return TypeAdapter(kind).validate_python(values, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(_explain_field(first, kind)) from error


def to_plain(settings: Any) -> dict[str, Any]:
    """Settings as nested plain values, for run.json; tokens and passwords in them (`model.kwargs.token`) as ***."""
    return _redacted(dataclasses.asdict(settings))


def cache_folder() -> Path:
    """Where models are kept: `HFRAY_CACHE`, else `hfray` under the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HFRAY_CACHE") or Path(base) / "hfray").expanduser().absolute()


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
