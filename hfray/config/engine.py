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
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # for which accelerate makes the device map
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
        return self.gpus != 0

    @property
    def gpus(self) -> int | None:
        """CUDA GPUs that an engine needs; None: all GPUs of its node, for accelerate to spread the model over."""
        if self.map is None:
            return 0 if self.index is None or self.index < 0 else 1
        places = self.map.values() if isinstance(self.map, dict) else [self.map]
        if not isinstance(self.map, dict) and self.map in MAPS:
            return None
        return max((gpu_index(place) + 1 for place in places), default=0)


def gpu_index(place: object) -> int:
    """The number of the GPU that a device map names, as in 1 or "cuda:1"; -1 for the CPU and the disk."""
    name = str(place)
    if name in ("cpu", "disk"):
        return -1
    number = name.rpartition(":")[2]
    return int(number) if number.isdigit() else 0


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

    @property
    def gpus(self) -> int | None:
        """CUDA GPUs that the engine runs on; None: all GPUs of its node."""
        given = self.backend.parallel_gpus if self.backend.name == "vllm" and self.device.uses_gpu else None
        return given or self.device.gpus

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
