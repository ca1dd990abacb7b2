"""`backend=auto`: which engine runs a job fastest where its workers run.

vLLM, if it is installed and knows the model's architecture; else transformers' paged batching, if the job is greedy and
flash attention is there; else hfray's own engine over torch. `look` finds the facts on a node, `choose` decides.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hfray.config.formats import format_of
from hfray.models.folder import num_attention_heads, read_config

if TYPE_CHECKING:
    from hfray.config.engine import EngineSettings

S = TypeVar("S", bound="EngineSettings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the choice depends on.

    Attributes:
        task: the job's task.
        architecture: the model's class, as its config.json names it.
        heads: attention heads of the model, None if its config does not say.
        gpus: GPUs of one engine, 0 on a CPU.
        map: whether the user's own device map places the layers.
        fp32: whether the precision asked for is fp32.
        from_pretrained: whether there are further arguments of from_pretrained (`model.kwargs`).
        beyond_greedy: a parameter that asks for more than greedy decoding; None if no row can ask for more.
        beyond_vllm: a setting that vLLM does not have, or None.
        typed: whether the answers are held to a form (`response`).
        vllm: vLLM's version, None if it cannot run on this device.
        vllm_problem: why it cannot.
        vllm_knows: whether vLLM has the architecture itself.
        flash_attention: whether transformers finds flash attention 2.
        pageable: whether transformers can page the model's attention.
    """

    task: str = "text-generation"
    architecture: str = ""
    heads: int | None = None
    gpus: int = 1
    map: bool = False
    fp32: bool = False
    from_pretrained: bool = False
    beyond_greedy: str | None = None
    beyond_vllm: str | None = None
    typed: bool = False
    vllm: str | None = None
    vllm_problem: str = "vLLM is not installed"
    vllm_knows: bool = False
    flash_attention: bool = False
    pageable: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine, as `AutoBackend.resolved` takes it, and why."""

    engine: str
    reason: str


def choose(facts: Facts) -> Choice:
    """The engine for a job."""
    not_vllm = _against_vllm(facts)
    if not_vllm is None:
        return Choice("vllm", f"vLLM {facts.vllm} runs {facts.architecture}")
    not_paged = _against_paged(facts)
    if not_paged is None:
        return Choice("paged", f"transformers' paged batching with flash attention, as {not_vllm}")
    return Choice("transformers", f"hfray's engine over torch, as {not_vllm}, and {not_paged}")


def _against_vllm(facts: Facts) -> str | None:
    """Why vLLM is not chosen."""
    reasons = {
        f"vLLM does not run task={facts.task}": facts.task != "text-generation",
        facts.vllm_problem: facts.vllm is None,
        f"vLLM has no {facts.architecture or 'such architecture'}": not facts.vllm_knows,
        "vLLM takes no model.kwargs": facts.from_pretrained,
        "vLLM does not take a device.map of single layers": facts.map,
        f"vLLM has no {facts.beyond_vllm}": facts.beyond_vllm is not None,
        "vLLM's fast kernels compute in 16 bits": facts.fp32 and facts.gpus > 0,
        f"the {facts.heads} attention heads cannot be divided among {facts.gpus} GPUs": (
            facts.heads is not None and facts.gpus > 1 and facts.heads % facts.gpus != 0
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _against_paged(facts: Facts) -> str | None:
    """Why transformers' paged batching is not chosen."""
    reasons = {
        f"paged batching does not run task={facts.task}": facts.task != "text-generation",
        "paged batching needs a GPU": facts.gpus == 0,
        "paged batching runs on one GPU": facts.gpus > 1 or facts.map,
        "paged batching is greedy, and rows may sample": facts.beyond_greedy == "",
        f"paged batching is greedy, without generation.{facts.beyond_greedy}": bool(facts.beyond_greedy),
        "paged batching holds no answers to a form": facts.typed,
        "flash attention computes in 16 bits": facts.fp32,
        "flash attention is not installed": not facts.flash_attention,
        f"the attention of {facts.architecture or 'the model'} cannot be paged": not facts.pageable,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def resolve(settings: S, folder: Path | None = None, *, fixed_params: bool = False) -> tuple[S, Choice | None]:
    """The settings with an engine in place of `backend=auto`, and the choice; None if the settings name an engine.

    Args:
        folder: the prepared model, None to prepare it here.
        fixed_params: whether `settings.params` hold for every row, as in a job; otherwise requests bring their own.

    Raises:
        SettingsError: the model cannot be fetched.
    """
    if settings.backend.name != "auto":
        return settings, None
    if folder is None or not folder.exists():
        from hfray.models.source import prepare

        folder = prepare(settings)
    choice = choose(look(settings, folder, fixed_params))
    return replace(settings, backend=settings.backend.resolved(choice.engine)), choice


def look(settings: EngineSettings, folder: Path, fixed_params: bool) -> Facts:
    """The facts about a job on this machine. Imports vLLM if it is installed."""
    import hfray.engines.torch  # noqa: F401  before torch: sets up its memory allocator

    config, device, params = read_config(folder), settings.device, settings.params
    architecture = next(iter(config.get("architectures") or ()), "")
    version, problem, knows = _vllm(architecture, device.uses_gpu)
    flash = device.uses_gpu and version is None and _has_flash_attention()
    return Facts(
        task=settings.task,
        architecture=architecture,
        heads=num_attention_heads(config),
        gpus=_gpus(settings),
        map=isinstance(device.map, dict),
        fp32=format_of(settings.asked_precision) == "fp32",
        from_pretrained=bool(settings.model.kwargs),
        beyond_greedy=params.beyond_greedy if fixed_params else "",
        beyond_vllm=_beyond_vllm(settings),
        typed=settings.response.given,
        vllm=version,
        vllm_problem=problem,
        vllm_knows=knows,
        flash_attention=flash,
        pageable=flash and _is_pageable(folder, settings.model.trust_remote_code),
    )


def _beyond_vllm(settings: EngineSettings) -> str | None:
    """A setting that vLLM does not have."""
    from hfray.config.backend import VLLMBackend

    ngram = settings.params.no_repeat_ngram_size
    if ngram:
        return f"generation.no_repeat_ngram_size={ngram}"
    try:
        settings.response.check_engine(VLLMBackend(name="vllm"), settings.task)
    except ValueError as error:
        return f"way to this form ({error})"
    return None


def _gpus(settings: EngineSettings) -> int:
    if settings.gpus is not None:
        return settings.gpus
    import torch

    return torch.cuda.device_count()


def _vllm(architecture: str, on_gpu: bool) -> tuple[str | None, str, bool]:
    """vLLM's version, or None and why it cannot run here; and whether it knows the architecture."""
    if importlib.util.find_spec("vllm") is None:
        return None, "vLLM is not installed", False
    try:
        from hfray.engines import vllm
    except Exception as error:  # a broken installation fails in many ways
        return None, f"vLLM cannot be imported ({type(error).__name__}: {error})", False
    if not vllm.runs_on(on_gpu):
        return None, f"the installed vLLM is not for {'GPUs' if on_gpu else 'CPUs'}", False
    return vllm.version(), "", vllm.knows(architecture)


def _has_flash_attention() -> bool:
    from transformers.utils.import_utils import is_flash_attn_2_available

    return is_flash_attn_2_available()


def _is_pageable(folder: Path, trust_remote_code: bool) -> bool:
    """Whether transformers can page the attention of the folder's model: one kind of attention in all layers."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    model = mapping.get(type(config), None)
    one_kind = len(set(getattr(config.get_text_config(), "layer_types", None) or [""])) == 1
    return one_kind and bool(getattr(model, "_supports_attention_backend", False))
