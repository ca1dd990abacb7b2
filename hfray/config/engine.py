"""Settings of an engine: model, backend, device, prompt, generation."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from hfray.config.backend import STRICT, Backend, ModelSettings
from hfray.config.precision import asked_precision, check_precision
from hfray.config.response import ResponseSettings
from hfray.params import GenerationParams

PromptFormat = Literal["f-string", "jinja2", "mustache"]
Task = Literal["text-generation", "text2text-generation", "summarization", "translation"]


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
    response: ResponseSettings = Field(default_factory=ResponseSettings)

    def __post_init__(self) -> None:
        if self.task == "text-generation" and (self.params.num_beams or 1) > 1:
            raise ValueError(
                f"generation.num_beams={self.params.num_beams}: only sequence-to-sequence tasks run beam search. "
                "Drop it, or sample with generation.temperature."
            )
        if self.backend.name == "transformers" and self.backend.paged:
            self._check_paged()
        check_precision(self.model, self.backend)
        self.response.check_engine(self.backend, self.task)

    @property
    def asked_precision(self) -> str:
        """What to compute in, from all options: auto, exact, or a number format."""
        return asked_precision(self.model, self.backend)

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
        """The generation settings with the form of the answers, checked."""
        return replace(GenerationParams.from_mapping(self.generation), response=self.response.format)
