"""Where the checks run: versions, what the device copies and multiplies per second, and how hfray picks devices."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.gpu.models import complete, free, requests, synchronize
from tests.gpu.report import Report

ROOT = Path(__file__).parents[2]


def describe(report: Report, device: str) -> None:
    """Versions and hardware."""
    import accelerate
    import transformers

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "accelerate": accelerate.__version__}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        report.add("environment", "device", f"{properties.name}, {properties.total_memory / (1 << 30):.0f} GiB")
        versions |= {
            "CUDA": torch.version.cuda,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        }
    else:
        report.add("environment", "device", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    report.add("environment", "versions", ", ".join(f"{name} {value}" for name, value in versions.items()))


def ceilings(report: Report, device: str, small: bool) -> None:
    """The device's own limits: no engine can be faster."""
    size = 1 << (20 if small else 30)
    seconds = _seconds(_copying(size, device), device)
    report.add("environment", "copy, read and write", 2 * size / seconds / 1e9, "GB/s")
    side = 256 if small else 8192
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        seconds = _seconds(functools.partial(torch.matmul, matrix, matrix), device)
        report.add("environment", f"matrix product, {str(dtype)[6:]}", 2 * side**3 / seconds / 1e12, "TFLOP/s")
        del matrix
    free()


def _copying(size: int, device: str) -> Callable[[], object]:
    source = torch.empty(size, dtype=torch.uint8, device=device)
    return functools.partial(torch.empty_like(source).copy_, source)


def devices(report: Report, device: str) -> None:
    """Each way to name a device: index, UUID, none, and a map over all GPUs."""
    if not device.startswith("cuda"):
        report.add("devices", "not run", "needs a GPU")
        return
    code = "import torch; from hfray.engines.load import torch_device; print(torch_device(0))"
    last = torch.cuda.device_count() - 1
    uuid = f"GPU-{torch.cuda.get_device_properties(last).uuid}"
    done = _python(code, CUDA_VISIBLE_DEVICES=uuid)
    report.add(
        "devices",
        "by UUID",
        done.stdout.strip() or done.stderr[-200:],
        goal="cuda:0",
        ok=done.stdout.strip() == "cuda:0",
    )
    done = _python(code, CUDA_VISIBLE_DEVICES="")
    refused = "device.index=0: no such GPU" in done.stderr
    report.add("devices", "none visible", "refused" if refused else done.stderr[-200:], goal="refused", ok=refused)
    from hfray.engines.torch.causal import TransformersEngine
    from tests.tiny import tiny_model

    maps = {f"index {i}": {"device": f"cuda:{i}"} for i in range(last + 1)} | {"map auto": {"device_map": "auto"}}
    for words, options in maps.items():
        engine = TransformersEngine.from_folder(tiny_model("llama"), **options)
        found = {str(parameter.device) for parameter in engine.model.parameters()}
        tokens = complete(engine, requests(4, 5, 4, 300))
        good = all(len(t) == 4 for t in tokens.values()) and all(d.startswith("cuda") for d in found)
        if "device" in options:
            good = good and found == {options["device"]}
        report.add("devices", words, ", ".join(sorted(found)), goal="on the GPU", ok=good)
        engine.close()
        free()


def contract(report: Report, device: str, small: bool) -> None:
    """The suite that every engine passes, over the transformers engine on this device in fp32."""
    chosen = "transformers and not tells_what_it_computes_in"
    if not _has_llguidance():
        chosen += " and not _form"  # answers with a form
    if small:
        chosen = "transformers-gpt2 and (come_back_in_order or own_seed or likeliest)"
    command = [sys.executable, "-m", "pytest", "tests/engines/test_contract.py", "-k", chosen, "-p", "no:cacheprovider"]
    environment = os.environ | {"HFRAY_TEST_DEVICE": device, "NVIDIA_TF32_OVERRIDE": "0"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    limit = max(60.0, report.left)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
    )
    last = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])
    report.add(
        "contract", f"engine suite on {device}, fp32", last.strip("= "), goal="all pass", ok=done.returncode == 0
    )


def _has_llguidance() -> bool:
    try:
        import llguidance  # noqa: F401
    except ImportError:
        return False
    return True


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _seconds(work, device: str, times: int = 10) -> float:
    for _ in range(3):
        work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / times
