"""Which model, and which library runs it: the settings of models and backends."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hfray.config.formats import Precision
from hfray.config.secrets import check_no_credentials

STRICT = ConfigDict(extra="forbid", strict=True)


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

    @property
    def parallel_gpus(self) -> int | None:
        """GPUs that `options` spread one model over; None if they do not say."""
        sizes = [self.options.get(name) for name in ("tensor_parallel_size", "pipeline_parallel_size")]
        given = [size for size in sizes if isinstance(size, int)]
        return math.prod(given) if given else None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AutoBackend:
    """The fastest engine for the job where its workers run: vLLM, or transformers (`hfray.engines.choice`)."""

    name: Literal["auto"]
    batch_size: int | None = Field(default=None, ge=1)
    prefix_caching: bool = True

    def resolved(self, engine: str) -> VLLMBackend | TransformersBackend:
        """The backend of an engine: `vllm`, `paged` or `transformers`."""
        if engine == "vllm":
            return VLLMBackend(name="vllm", batch_size=self.batch_size, prefix_caching=self.prefix_caching)
        paged = engine == "paged"
        return TransformersBackend(
            name="transformers",
            attention="flash_attention_2" if paged else None,
            paged=paged,
            batch_size=self.batch_size,
            prefix_caching=self.prefix_caching,
        )


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


Backend = OpenVINOBackend | TransformersBackend | VLLMBackend | AutoBackend | FakeBackend
