"""What happens at the limits: little memory, and many rows."""

from __future__ import annotations

import random

import torch

from tests.gpu.models import complete, engine_of, free, model_of, requests
from tests.gpu.report import Report

CAP = 0.15  # of the GPU's memory
GROWTH = 1.05  # the most that memory may grow between the second and the last part of the soak


def memory_cap(report: Report, device: str, small: bool) -> None:
    """One very long row among short ones, with little memory: all rows come back."""
    rows, long, new = (16, 100, 8) if small else (256, 1900, 64)
    capped = device.startswith("cuda") and not small
    if capped:
        torch.cuda.set_per_process_memory_fraction(CAP, device)
    try:
        with model_of("bloom", device, torch.float32 if device == "cpu" else torch.float16, small) as model:
            free()
            options = {} if device.startswith("cuda") else {"capacity": rows, "kv_positions": 2000}
            engine = engine_of(model, **options)
            wanted = requests(rows, [long, *[64] * (rows - 1)], new, model.config.vocab_size)
            found = complete(engine, wanted)
            back = sum(len(tokens) == new for tokens in found.values())
            what = f"bloom, one row of {long} among {rows - 1} of 64" + (f", {CAP:.0%} of the memory" if capped else "")
            report.add("limits", f"{what}: rows returned", back, f"of {rows}", "all", back == rows)
            report.add("limits", f"{what}: capacity at the end", engine.capacity, "rows")
            engine.close()
    finally:
        if capped:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def soak(report: Report, device: str, small: bool) -> None:
    """Many rows of many lengths: all return, and memory stays flat."""
    count = 60 if small else 5000
    generator = random.Random(0)
    with model_of("bloom", device, torch.float32 if device == "cpu" else torch.float16, small) as model:
        engine = engine_of(model, capacity=16 if small else None)
        peaks, returned, parts = [], 0, 5
        for part in range(parts):
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats(device)
            wanted = []
            for i in range(count // parts):
                length, new = generator.randint(8, 200), generator.randint(4, 16 if small else 64)
                wanted += requests(1, length, new, model.config.vocab_size, start=part * count + i)
            found = complete(engine, wanted)
            returned += sum(len(found[request.id]) == request.max_new_tokens for request in wanted)
            if device.startswith("cuda"):
                peaks.append(torch.cuda.max_memory_reserved(device))
        report.add("limits", f"soak of {count} rows: returned", returned, f"of {count}", "all", returned == count)
        if peaks:
            growth = peaks[-1] / max(peaks[:2])
            words = " ".join(f"{peak / (1 << 30):.1f}" for peak in peaks)
            report.add("limits", "soak: reserved memory by fifths", words, "GiB")
            report.add("limits", "soak: growth of memory", growth, "times", f"<= {GROWTH}", growth <= GROWTH)
        engine.close()
