"""From settings to a running engine. Only this file knows the class of each backend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfray.config.formats import computing_format, format_of
from hfray.engines.base import Engine
from hfray.engines.capacity import capacity_of

if TYPE_CHECKING:
    from hfray.config.backend import OpenVINOBackend, TransformersBackend, VLLMBackend
    from hfray.config.engine import EngineSettings


WORKER = "HFRAY_WORKER"  # environment variable, set in hfray's own workers
SEQ2SEQ = {"text2text-generation", "summarization", "translation"}


def load_engine(
    settings: EngineSettings, *, folder: Path | None = None, threads: int | None = None, gpu_share: float = 1.0
) -> Engine:
    """Load the engine that `settings` describe.

    Args:
        folder: the prepared model folder. If it is None, or does not exist on this node, the model is prepared here
            (`hfray.models.source.prepare`).
        threads: CPU threads for the engine; None: the library decides.
        gpu_share: the part of a GPU's memory that the engine may take (`WorkerSettings.gpu_share`).

    Raises:
        ValueError: the model or device cannot be used; the message names the key, its value and the remedy.
    """
    if settings.backend.name == "auto":
        from hfray.engines.choice import resolve

        settings, _ = resolve(settings, folder)
    engine = _load(settings, folder, threads, gpu_share)
    wanted = format_of(settings.asked_precision)
    if wanted is not None and computing_format(engine.precision) != wanted:
        engine.close()
        raise ValueError(
            f"model.precision={settings.asked_precision}: the engine computes in {engine.precision} on this device. "
            "Use model.precision=auto, or another device."
        )
    return engine


def _load(settings: EngineSettings, folder: Path | None, threads: int | None, gpu_share: float) -> Engine:
    backend = settings.backend
    if backend.name == "fake":
        from hfray.engines.fake import FakeEngine

        options = {key: value for key, value in vars(backend).items() if key not in ("name", "batch_size")}
        options["precision"] = format_of(settings.asked_precision) or "fp32"
        return FakeEngine(capacity=capacity_of(settings), **options)
    if folder is None or not folder.exists():
        from hfray.models.source import prepare

        folder = prepare(settings)
    if backend.name == "openvino":
        return _openvino(settings, backend, folder, threads)
    if backend.name == "transformers":
        return _transformers(settings, backend, folder, threads, gpu_share)
    assert backend.name == "vllm"  # `load_engine` has replaced `auto`
    return _vllm(settings, backend, folder, threads, gpu_share)


def _openvino(settings: EngineSettings, backend: OpenVINOBackend, folder: Path, threads: int | None) -> Engine:
    device, precision = settings.device.name or "CPU", settings.asked_precision
    properties: dict[str, Any] = dict(backend.ov_config)
    cores = os.cpu_count() or 1
    if threads and device == "CPU":
        # With pinning, every process takes the first cores: two engines of one thread each ran at half speed (2026.4).
        properties.setdefault("ENABLE_CPU_PINNING", False)
        if threads < cores:  # OpenVINO places threads better itself if it may use all cores
            properties.setdefault("INFERENCE_NUM_THREADS", threads)
    if settings.task in SEQ2SEQ:
        from hfray.engines.torch.seq2seq import Seq2SeqEngine

        return Seq2SeqEngine.from_openvino(
            folder,
            task=settings.task,
            device=device,
            precision=precision,
            properties=properties,
            capacity=backend.batch_size,
        )
    from hfray.engines.openvino import OpenVINOEngine

    return OpenVINOEngine(
        folder,
        device=device,
        precision=precision,
        properties=properties,
        capacity=backend.batch_size,
        batch_tokens=backend.batch_tokens,
        kv_cache_gib=backend.kv_cache_gib,
        machine_share=min(1.0, threads / cores) if threads else 1.0,
        prefix_caching=backend.prefix_caching,
    )


def _transformers(
    settings: EngineSettings, backend: TransformersBackend, folder: Path, threads: int | None, gpu_share: float
) -> Engine:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import hfray.engines.torch  # noqa: F401  before torch: sets up its memory allocator
    import torch  # isort: skip
    from hfray.engines.torch.memory import limit_memory

    if threads:
        torch.set_num_threads(threads)
    device = settings.device
    limit_memory(gpu_share)
    options: dict[str, Any] = {
        "capacity": backend.batch_size,
        "batch_tokens": backend.batch_tokens,
        "device": torch_device(device.index),
        "device_map": device.map,
        "precision": settings.asked_precision,
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


def _vllm(
    settings: EngineSettings, backend: VLLMBackend, folder: Path, threads: int | None, gpu_share: float
) -> Engine:
    device = settings.device
    if settings.task != "text-generation":
        raise ValueError(f"task={settings.task}: backend=vllm supports text-generation only. Use backend=transformers.")
    if settings.model.kwargs:
        raise ValueError(
            "model.kwargs: these are arguments of from_pretrained, which vLLM does not call. Use backend.options."
        )
    on_cpu, alone = not device.uses_gpu, device.map is None
    if on_cpu:  # set the variables before the import, because vLLM reads them then
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # otherwise a GPU build of vLLM would use a GPU
        if threads:
            os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    elif alone:  # vLLM has no device index: it uses the first visible GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(torch_device(device.index), settings.gpus or 1)
    try:
        from hfray.engines.vllm import VLLMEngine
    except ImportError as error:
        raise ValueError(
            f"backend=vllm: vLLM cannot be imported ({error}). Install `hfray[gpu]`, or vLLM's build for CPUs."
        ) from error
    arguments: dict[str, Any] = {
        "enable_prefix_caching": backend.prefix_caching,
        "tensor_parallel_size": None if on_cpu or alone or backend.parallel_gpus else settings.gpus or _gpu_count(),
        "max_num_batched_tokens": backend.batch_tokens,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None} | dict(backend.options)
    trust = settings.model.trust_remote_code
    return VLLMEngine(folder, capacity=capacity_of(settings), trust_remote_code=trust, gpu_share=gpu_share, **arguments)


def _visible(device: str, count: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES that makes only torch's `device` and those after it visible, `count` in all.

    Raises:
        ValueError: there are not so many GPUs.
    """
    first, given = int(device.removeprefix("cuda:")), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(index) for index in range(_gpu_count())]
    if first + count > len(names):
        raise ValueError(
            f"backend.options: the engine runs on {count} GPUs, and {len(names) - first} are visible from device.index on. "
            f"In a job, leave workers.gpus out or set it to {count}; otherwise use fewer GPUs."
        )
    return ",".join(names[first : first + count])


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def torch_device(index: int | None) -> str:
    """torch's name for device.index. Raises ValueError if there is no such GPU.

    A worker of hfray sees only the GPUs that it booked in Ray, so there every index means the first GPU. A user's own
    task or actor may have several GPUs, and its index counts.
    """
    import torch

    if index is None or index < 0:
        return "cpu"
    count = torch.cuda.device_count()
    if os.environ.get(WORKER):
        index = 0
    if index >= count:
        raise ValueError(
            f"device.index={index}: no such GPU on this machine (torch {torch.__version__} sees {count}). "
            "Use device=cpu, or a machine with a GPU and a torch built for it."
        )
    return f"cuda:{index}"
