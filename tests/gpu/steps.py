"""One step under the microscope: waits for the device, kernels, busy time, and what a refill costs."""

from __future__ import annotations

import time
import warnings

import torch

from hfray.engines.torch.memory import position_bytes
from tests.gpu.models import GREEDY, SAMPLED, complete, engine_of, model_of, requests, synchronize
from tests.gpu.report import Report

STEPS = 20
WAITS = 1  # the copy of the new tokens


def steps(report: Report, device: str, small: bool) -> None:
    """Waits and kernels of `STEPS` decoding steps, for both shapes, greedy and sampled."""
    rows = 16 if small else 256
    for name in ("bloom", "llama"):
        with model_of(name, device, torch.float32 if device == "cpu" else torch.float16, small) as model:
            for words, params in (("greedy", GREEDY), ("sampled", SAMPLED)):
                engine = engine_of(model, capacity=rows)
                for request in requests(rows, 32, 4 * STEPS, model.config.vocab_size, **params):
                    engine.add(request)
                while engine._waiting:
                    engine.step()
                for _ in range(3):
                    engine.step()
                what = f"{name}, {rows} rows, {words}"
                if device.startswith("cuda"):
                    _count_waits(report, engine, what)
                _profile(report, engine, what, device)
                engine.close()


def _count_waits(report: Report, engine, what: str) -> None:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(STEPS):
                engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message).lower()]
    places = sorted({f"{w.filename.rsplit('/', 1)[-1]}:{w.lineno}" for w in caught})
    per_step = len(waits) / STEPS
    report.add("steps", f"{what}: waits", per_step, "a step", f"<= {WAITS}", per_step <= WAITS)
    if per_step > WAITS:
        report.add("steps", f"{what}: they are in", ", ".join(places[:6]))


def _profile(report: Report, engine, what: str, device: str) -> None:
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.startswith("cuda")
    synchronize(device)
    start = time.perf_counter()
    for _ in range(STEPS):
        engine.step()
    synchronize(device)
    wall = (time.perf_counter() - start) / STEPS
    report.add("steps", f"{what}: a step", 1000 * wall, "ms")
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            engine.step()
        synchronize(device)
    if not on_gpu:
        operations = sum(event.count for event in profiler.key_averages()) / STEPS
        report.add("steps", f"{what}: operations", operations, "a step")
        return
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.device_time for event in events) / 1e6 / STEPS
    report.add("steps", f"{what}: kernels and copies", len(events) / STEPS, "a step")
    report.add("steps", f"{what}: GPU busy", 100 * busy / wall, "% of a step")
    report.add("steps", f"{what}: host time beyond the GPU's", 1000 * max(0.0, wall - busy), "ms a step")


def refill(report: Report, device: str, small: bool) -> None:
    """New rows join a batch at 512 positions: time, and bytes that it writes."""
    rows, new, length = (16, 4, 64) if small else (256, 32, 512)
    with model_of("bloom", device, torch.float32 if device == "cpu" else torch.float16, small) as model:
        engine = engine_of(model, capacity=rows, batch_tokens=rows * length)
        for request in requests(rows, length - 8, 64, model.config.vocab_size):
            engine.add(request)
        while engine._waiting:
            engine.step()
        for _ in range(8):
            engine.step()
        batch = engine._batch
        for slot in range(0, rows, rows // new):
            batch.leave(slot)
        before = [buffer.data_ptr() for layer in batch.cache.layers for buffer in layer._buffers]
        other = engine_of(model, capacity=new)
        for request in requests(new, 64, 8, model.config.vocab_size, start=rows):
            other.add(request)
        other.step()
        joining = other._batch.cache
        synchronize(device)
        start = time.perf_counter()
        with torch.inference_mode():
            slots = batch.put_cache(joining, new)
        synchronize(device)
        seconds = time.perf_counter() - start
        after = [buffer.data_ptr() for layer in batch.cache.layers for buffer in layer._buffers]
        copied = before != after
        written = (len(batch.rows) if copied else len(slots)) * batch.cache.length * position_bytes(model)
        what = f"bloom, {new} of {rows} rows at {length} positions"
        report.add("refill", f"{what}: time", 1000 * seconds, "ms")
        report.add("refill", f"{what}: bytes written", written / 1e6, "MB")
        report.add("refill", f"{what}: the other rows", "copied" if copied else "stay", goal="stay", ok=not copied)
        engine.close()
        other.close()


def warm_up(device: str, small: bool) -> None:
    """Load the kernels before anything is measured."""
    with model_of("bloom", device, torch.float32 if device == "cpu" else torch.float16, True) as model:
        complete(engine_of(model, capacity=4), requests(8, 8, 4, model.config.vocab_size, **SAMPLED))
