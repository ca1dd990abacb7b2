"""Settings of an engine: model, backend, device, prompt, generation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hfray.config.precision import Precision, check_precision
from hfray.config.secrets import check_no_credentials
from hfray.params import GenerationParams

STRICT = ConfigDict(extra="forbid", strict=True)
PromptFormat = Literal["f-string", "jinja2", "mustache"]
Task = Literal["text-generation", "text2text-generation", "summarization", "translation"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSettings:
    """Which model, and what to compute in; the other fields have the names of `from_pretrained`'s arguments."""

    source: str
    revision: str | None = None
    trust_remote_code: bool = False
    precision: Precision = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    kwargs: dict[str, object] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        check_no_credentials("model.source", self.source)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OpenVINOBackend:
    """OpenVINO GenAI's continuous batching; OpenVINO gets `ov_config` unchanged."""

    name: Literal["openvino"]
    ov_config: dict[str, object] = Field(default_factory=dict)
    weight_format: Literal["auto", "fp32", "fp16", "int8", "int4"] = "auto"
    group_size: int | None = None
    batch_size: int | None = Field(default=None, ge=1)
    batch_tokens: int = Field(default=512, ge=1)
    kv_cache_gib: float | None = Field(default=None, gt=0)
    prefix_caching: bool = True

    @property
    def export_format(self) -> str:
        """The weight format of an export by optimum-intel."""
        return "fp32" if self.weight_format == "auto" else self.weight_format


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TransformersBackend:
    """transformers and torch.

    Attributes:
        attention: `attn_implementation`; None: sdpa that reads shared key-value heads once.
        paged: use transformers' own continuous batching; `kv_cache_gib` and `prefix_caching` apply to it only.
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
    """vLLM's engine; vLLM gets `options` unchanged, as its `EngineArgs`."""

    name: Literal["vllm"]
    options: dict[str, object] = Field(default_factory=dict)
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
    """Where the model runs.

    Attributes:
        index: -1 for the CPU, n for the n-th GPU.
        map: an accelerate device map, instead of `index`.
        name: OpenVINO's device name.
    """

    index: int | None = Field(default=None, ge=-1)
    map: str | dict[str, object] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.map is not None and self.index is not None and self.index >= 0:
            raise ValueError(
                f"device.index={self.index} and device.map={self.map!r} are both given, but the first means one GPU and "
                "the second a map over several. Drop one of them."
            )

    @property
    def uses_gpu(self) -> bool:
        """Whether an engine needs a CUDA GPU from Ray; an Intel GPU under OpenVINO (`name`) does not count."""
        return self.map not in (None, "cpu") or (self.index is not None and self.index >= 0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptSettings:
    """How a record becomes a prompt: by a LangChain template, or by `target`, the user's own LangChain object."""

    template: str | None = None
    format: PromptFormat = "f-string"
    chat: bool = False
    system: str | None = None
    target: dict[str, object] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EngineSettings:
    """An engine and its text: what `load_engine` takes."""

    ROOT: ClassVar[str] = "load_engine"  # the file in conf/ that composes these settings

    model: ModelSettings
    task: Task = "text-generation"
    backend: Backend = Field(discriminator="name")
    device: DeviceSettings = Field(default_factory=DeviceSettings)
    generation: dict[str, object] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task == "text-generation" and (self.params.num_beams or 1) > 1:
            raise ValueError(
                f"generation.num_beams={self.params.num_beams}: only sequence-to-sequence tasks run beam search. "
                "Drop it, or sample with generation.temperature."
            )
        if self.backend.name == "transformers" and self.backend.paged:
            self._check_paged()
        check_precision(self)

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
                f"{beyond}: backend.paged=true runs greedy text-generation on one device only. Use backend.paged=false."
            )

    @property
    def params(self) -> GenerationParams:
        """The generation settings, checked."""
        return GenerationParams.from_mapping(self.generation)
