"""Tokens per second, beside the way of the page this project began with, and beside transformers' own batching."""

from __future__ import annotations

import time
from typing import Any

import torch

from tests.gpu.models import GREEDY, SAMPLED, engine_of, free, model_of, requests, synchronize, tokens_per_second
from tests.gpu.report import Report

PROMPT = 64
PAGE_ROWS, PAGE_NEW = 16, 64  # the page's way is slow: a few rows tell its speed
PAGE_GOAL = 20.0  # times the page's way


def speed(report: Report, name: str, device: str, small: bool) -> None:
    """The grid of rows and lengths, greedy and sampled, then the comparisons."""
    with model_of(name, device, torch.float32 if device == "cpu" else torch.float16, small) as model:
        page = _pages_way(model, device, small)
        report.add("speed", f"{name}: generate, batch_size=2", page, "tokens/s")
        rates: dict[tuple[int, int, str], float] = {}
        for new in (8,) if small else (64, 512):
            for rows in (8, 16) if small else (64, 256, 512, 1024):
                for words, params in (("greedy", GREEDY), ("sampled", SAMPLED)):
                    what = f"{name}: {rows} rows of {new} tokens, {words}"
                    if report.left < 30:
                        report.add("speed", what, "not run: no time left")
                        continue
                    engine = engine_of(model, capacity=None if device.startswith("cuda") else rows)
                    wanted = requests(rows, PROMPT, new, model.config.vocab_size, **params)
                    rate = rates[rows, new, words] = tokens_per_second(engine, wanted, device)
                    report.add("speed", what, rate, "tokens/s")
                    engine.close()
                    free()
        best = max(rate for (_, _, words), rate in rates.items() if words == "greedy")
        if name == "bloom":
            times = best / page
            goal = None if small else times >= PAGE_GOAL
            report.add("speed", "bloom: engine against batch_size=2", times, "times", f">= {PAGE_GOAL:.0f}", goal)
        for key, rate in rates.items():
            if key[2] == "sampled" and (*key[:2], "greedy") in rates:
                share = 100 * rate / rates[*key[:2], "greedy"]
                report.add("speed", f"{name}: sampled against greedy, {key[0]} rows of {key[1]}", share, "%")
        if name == "llama" and device.startswith("cuda"):
            _against_generate_batch(report, model, rates, device)


def _pages_way(model: Any, device: str, small: bool) -> float:
    """Tokens per second of `generate` with two rows at a time, as a pipeline with `batch_size=2` runs it."""
    rows, new = (4, 8) if small else (PAGE_ROWS, PAGE_NEW)
    wanted = requests(rows, PROMPT, new, model.config.vocab_size)
    for measured in (False, True):  # the first round warms up
        synchronize(device)
        start = time.perf_counter()
        for i in range(0, rows if measured else 2, 2):
            ids = torch.tensor([request.prompt_ids for request in wanted[i : i + 2]], device=device)
            mask = torch.ones_like(ids)
            model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=3)
        synchronize(device)
    return rows * new / (time.perf_counter() - start)


def _against_generate_batch(report: Report, model: Any, rates: dict, device: str) -> None:
    """transformers' continuous batching on the same prompts; with flash attention if it is there."""
    from transformers import GenerationConfig
    from transformers.utils import is_flash_attn_2_available

    rows, new = 512, 64
    if (rows, new, "greedy") not in rates:
        return
    implementation = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    wanted = requests(rows, PROMPT, new, model.config.vocab_size)
    model.set_attn_implementation(implementation)
    config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=3)
    what = f"llama: generate_batch, {rows} rows of {new} tokens, {implementation}"
    synchronize(device)
    start = time.perf_counter()
    outputs = model.generate_batch([request.prompt_ids for request in wanted], generation_config=config)
    synchronize(device)
    rate = sum(len(output.generated_tokens) for output in outputs.values()) / (time.perf_counter() - start)
    if not rate:
        report.add("speed", what, "failed: it returned nothing")
        return
    report.add("speed", what, rate, "tokens/s")
    times = rates[rows, new, "greedy"] / rate
    report.add("speed", "llama: engine against generate_batch", times, "times", ">= 1", times >= 1)
