"""Settings to a running engine: the one place that knows which class a backend is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfray.engines.base import Engine
from hfray.engines.capacity import capacity_of

if TYPE_CHECKING:
    from hfray.config.engine import EngineSettings


SEQ2SEQ = {"text2text-generation", "summarization", "translation"}


def load_engine(settings: EngineSettings, *, folder: Path | None = None, threads: int | None = None) -> Engine:
    """Load the engine that `settings` describe.

    Args:
        folder: the prepared model folder; None, or one that another node prepared and this one does not see, fetches
            and prepares it here (`hfray.models.source.prepare`).
        threads: CPU threads it may use; None leaves that to the library.

    Raises:
        ValueError: the model or device cannot be used; the message names the key, its value and the remedy.
    """
    backend = settings.backend
    if backend.name == "fake":
        from hfray.engines.fake import FakeEngine

        options = {key: value for key, value in vars(backend).items() if key not in ("name", "batch_size")}
        return FakeEngine(capacity=capacity_of(settings), **options)
    if folder is None or not folder.exists():
        from hfray.models.source import prepare

        folder = prepare(settings)
    return {"openvino": _openvino, "transformers": _transformers, "vllm": _vllm}[backend.name](
        settings, folder, threads
    )


def _openvino(settings: EngineSettings, folder: Path, threads: int | None) -> Engine:
    backend, device = settings.backend, settings.device.name or "CPU"
    properties: dict[str, Any] = dict(backend.ov_config)
    cores = os.cpu_count() or 1
    if threads and device == "CPU":
        # Pinned, every process takes the first cores: two engines of one thread ran at half their speed (2026.4).
        properties.setdefault("ENABLE_CPU_PINNING", False)
        if threads < cores:  # all of them OpenVINO places better by itself
            properties.setdefault("INFERENCE_NUM_THREADS", threads)
    if settings.task in SEQ2SEQ:
        from hfray.engines.torch.seq2seq import Seq2SeqEngine

        return Seq2SeqEngine.from_openvino(
            folder, task=settings.task, device=device, properties=properties, capacity=backend.batch_size
        )
    from hfray.engines.openvino import OpenVINOEngine

    return OpenVINOEngine(
        folder,
        device=device,
        properties=properties,
        capacity=backend.batch_size,
        batch_tokens=backend.batch_tokens,
        kv_cache_gib=backend.kv_cache_gib,
        machine_share=min(1.0, threads / cores) if threads else 1.0,
        prefix_caching=backend.prefix_caching,
    )


def _transformers(settings: EngineSettings, folder: Path, threads: int | None) -> Engine:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch

    if threads:
        torch.set_num_threads(threads)
    backend, device = settings.backend, settings.device
    options: dict[str, Any] = {
        "capacity": backend.batch_size,
        "batch_tokens": backend.batch_tokens,
        "device": torch_device(device.index),
        "device_map": device.map,
        "dtype": settings.model.dtype,
        "attention": backend.attention,
        "trust_remote_code": settings.model.trust_remote_code,
        "model_kwargs": settings.model.kwargs,
    }
    if settings.task in SEQ2SEQ:
        from hfray.engines.torch.seq2seq import Seq2SeqEngine

        return Seq2SeqEngine.from_folder(folder, task=settings.task, **options)
    if backend.paged:
        from hfray.engines.torch.paged import PagedEngine

        return PagedEngine.from_folder(
            folder, kv_cache_gib=backend.kv_cache_gib, prefix_caching=backend.prefix_caching, **options
        )
    from hfray.engines.torch.causal import TransformersEngine

    return TransformersEngine.from_folder(folder, **options)


def _vllm(settings: EngineSettings, folder: Path, threads: int | None) -> Engine:
    backend, device = settings.backend, settings.device
    if settings.task != "text-generation":
        raise ValueError(f"task={settings.task}: backend=vllm runs text-generation only. Use backend=transformers.")
    if settings.model.kwargs:
        raise ValueError("model.kwargs: are from_pretrained's, which vLLM does not call. Use backend.options.")
    on_cpu = not device.uses_gpu
    if on_cpu:  # read when vLLM is imported
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a vLLM for GPUs would take one, whatever is asked
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(backend.kv_cache_gib or 4))))
        if threads:
            os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    elif device.map is None:  # vLLM has no index of its own: it takes the first that it sees
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(torch_device(device.index))
    try:
        from hfray.engines.vllm import VLLMEngine
    except ImportError as error:
        raise ValueError(
            f"backend=vllm: vLLM cannot be imported ({error}). Install `hfray[vllm]`, or vLLM's build for CPUs."
        ) from error
    import torch

    from hfray.engines.torch.checkpoint import dtype_for

    arguments = {
        "dtype": dtype_for(settings.model.dtype, on_cpu=on_cpu),
        "enable_prefix_caching": backend.prefix_caching,
        "tensor_parallel_size": 1 if on_cpu or device.map is None else torch.cuda.device_count(),
        "max_num_batched_tokens": backend.batch_tokens,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None} | dict(backend.options)
    trust = settings.model.trust_remote_code
    return VLLMEngine(folder, capacity=capacity_of(settings), trust_remote_code=trust, **arguments)


def _visible(device: str) -> str:
    """CUDA_VISIBLE_DEVICES that shows only torch's `device`, by what of the machine is visible now."""
    index, given = int(device.removeprefix("cuda:")), os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[index] if given else str(index)


def torch_device(index: int | None) -> str:
    """torch's name of device.index. Raises ValueError where there is no such GPU.

    Under Ray each worker sees only its own GPUs, so any index means the worker's first.
    """
    import torch

    if index is None or index < 0:
        return "cpu"
    count = torch.cuda.device_count()
    if "RAY_JOB_ID" in os.environ or os.environ.get("HFRAY_WORKER"):
        index = 0
    if index >= count:
        raise ValueError(
            f"device.index={index}: there is no such GPU here (torch {torch.__version__} sees {count}). "
            "Use device=cpu, or a machine with a GPU and a torch built for it."
        )
    return f"cuda:{index}"
