"""Contestants of the bench, each run in a process of its own."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from pydantic.dataclasses import dataclass

from hfray.config.batch import BatchSettings
from hfray.engines.capacity import capacity_of


@dataclass(kw_only=True)
class Run:
    """One contestant's run. Rates leave start-up out; `first_row_seconds` is from the command."""

    tokens: int
    prompt_tokens: int = 0
    seconds: float
    startup_seconds: float | None = None
    first_row_seconds: float | None = None
    full_steps: float | None = None
    wall_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.seconds


# --- contestants, each in a process of its own -----------------------------------------------------------------


def engine_alone(settings: BatchSettings, texts: list[str], model: dict[str, str]) -> Run:
    """Our engine and its loop, without Ray."""
    from hfray.completion import Prompt
    from hfray.engines.load import load_engine
    from hfray.inference.loop import EngineLoop

    started = time.monotonic()
    folder = Path(model["ir"] if settings.backend.name == "openvino" else model["hf"])
    loop = EngineLoop(load_engine(settings, folder=folder))
    ready = time.monotonic()
    completions = loop.generate([Prompt(text) for text in texts], settings.params)
    seconds, stats = time.monotonic() - ready, loop.stats
    loop.close()
    return Run(
        tokens=sum(c.num_generated_tokens for c in completions),
        prompt_tokens=sum(c.num_prompt_tokens for c in completions),
        seconds=seconds,
        startup_seconds=ready - started,
        full_steps=stats.full_steps / max(1, stats.steps),
    )


def genai_directly(settings: BatchSettings, texts: list[str], model: dict[str, str]) -> Run:
    """OpenVINO GenAI's own `generate` over all prompts, with the same properties and concurrency."""
    import openvino_genai as genai

    started = time.monotonic()
    scheduler, backend = genai.SchedulerConfig(), settings.backend
    scheduler.cache_size, scheduler.max_num_seqs = 4, capacity_of(settings)
    scheduler.max_num_batched_tokens = backend.batch_tokens
    pipeline = genai.ContinuousBatchingPipeline(
        model["ir"], scheduler, settings.device.name or "CPU", dict(backend.ov_config)
    )
    config = genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = settings.params.max_new_tokens, False, False
    pipeline.generate(texts[:1], [config])
    ready = time.monotonic()
    results = pipeline.generate(texts, [config] * len(texts))
    seconds = time.monotonic() - ready
    tokenizer = pipeline.get_tokenizer()
    tokens = sum(tokenizer.encode(result.m_generation_ids[0]).input_ids.shape[1] for result in results)
    return Run(tokens=tokens, seconds=seconds, startup_seconds=ready - started)


def _main(name: str, payload: str) -> None:
    from hfray.config.build import build
    from hfray.config.engine import EngineSettings, PromptSettings
    from hfray.inference.prompts import RecordPrompt

    given = json.loads(payload)
    plain = given["settings"]
    settings = build(EngineSettings, {key: plain[key] for key in ("model", "task", "backend", "device", "generation")})
    prompt = RecordPrompt(build(PromptSettings, plain["prompt"]))
    with open(given["records"]) as file:
        texts = [prompt.render(json.loads(line)).text for line in file]
    contestant = {"engine": engine_alone, "genai": genai_directly}[name]
    print(json.dumps(asdict(contestant(settings, texts, given["model"]))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
