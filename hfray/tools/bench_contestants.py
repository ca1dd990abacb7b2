"""The contestants without Ray: hfray's engine alone, with and without a form, and OpenVINO GenAI called directly."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from hfray.config.backend import OpenVINOBackend
from hfray.config.engine import EngineSettings
from hfray.engines.capacity import capacity_of
from hfray.errors import SettingsError


@dataclass(kw_only=True)
class Run:
    """One run of one contestant.

    `precision` is what it computed in, as `Engine.precision`. `seconds` excludes start-up; `first_row_seconds` counts
    from the start of the command.
    """

    tokens: int
    precision: str = ""
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


def engine_alone(settings: EngineSettings, texts: list[str], model: dict[str, str], threads: int | None = None) -> Run:
    """hfray's engine and its loop, without Ray."""
    from hfray.completion import Prompt
    from hfray.engines.choice import resolve
    from hfray.engines.load import load_engine
    from hfray.inference.loop import EngineLoop

    started = time.monotonic()
    given = model.get("ir", model.get("hf"))  # the fake backend has no model
    folder = Path(given) if given else None
    settings, _ = resolve(settings, folder, fixed_params=True)
    loop = EngineLoop(load_engine(settings, folder=folder, threads=threads))
    ready, precision = time.monotonic(), loop.engine.precision
    completions = loop.generate([Prompt(text) for text in texts], settings.params)
    seconds, stats = time.monotonic() - ready, loop.stats
    loop.close()
    return Run(
        tokens=sum(c.num_generated_tokens for c in completions),
        precision=precision,
        prompt_tokens=sum(c.num_prompt_tokens for c in completions),
        seconds=seconds,
        startup_seconds=ready - started,
        full_steps=stats.full_steps / max(1, stats.steps),
    )


def engine_with_form(settings: EngineSettings, texts: list[str], model: dict[str, str], free: bool = False) -> Run:
    """The engine with answers that have a form.

    Args:
        free: measure the same prompts with the same number of tokens each, but without the form.

    An unmeasured pass before it compiles the form, counts the tokens and fills the prefix cache, for both alike.
    """
    from hfray.completion import Prompt
    from hfray.engines.load import load_engine
    from hfray.inference.loop import EngineLoop

    if settings.params.response is None:
        raise SettingsError("response.schema is not given, and the contestants typed and plain need a form. Add it.")
    started = time.monotonic()
    folder = model.get("ir" if settings.backend.name == "openvino" else "hf")
    loop = EngineLoop(load_engine(settings, folder=Path(folder) if folder else None))
    params = replace(settings.params, response=replace(settings.params.response, retries=None))
    prompts = [Prompt(text) for text in texts]
    lengths = [completion.num_generated_tokens for completion in loop.generate(prompts, params)]
    steps, full = loop.stats.steps, loop.stats.full_steps
    several = [params] * len(prompts)
    if free:
        plain = replace(params, response=None, ignore_eos=True)
        several = [replace(plain, max_new_tokens=max(1, length)) for length in lengths]
    ready = time.monotonic()
    handles = [loop.submit(prompt, own) for prompt, own in zip(prompts, several, strict=True)]
    completions = [handle.result() for handle in handles]
    seconds = time.monotonic() - ready
    loop.close()
    return Run(
        tokens=sum(c.num_generated_tokens for c in completions),
        precision=loop.engine.precision,
        prompt_tokens=sum(c.num_prompt_tokens for c in completions),
        seconds=seconds,
        startup_seconds=ready - started,
        full_steps=(loop.stats.full_steps - full) / max(1, loop.stats.steps - steps),
    )


def genai_directly(settings: EngineSettings, texts: list[str], model: dict[str, str]) -> Run:
    """OpenVINO GenAI's own `generate` over all prompts, with the same properties and concurrency."""
    if not isinstance(settings.backend, OpenVINOBackend):
        raise SettingsError(f"backend={settings.backend.name}: the contestant genai needs backend=openvino.")
    import openvino_genai as genai

    from hfray.engines.precision import compile_layer, openvino_properties, precision_of_compiled

    started, device = time.monotonic(), settings.device.name or "CPU"
    scheduler, backend = genai.SchedulerConfig(), settings.backend
    properties = openvino_properties(settings.asked_precision, device, backend.ov_config)
    scheduler.cache_size, scheduler.max_num_seqs = 4, capacity_of(settings)
    scheduler.max_num_batched_tokens = backend.batch_tokens
    pipeline = genai.ContinuousBatchingPipeline(model["ir"], scheduler, device, properties)
    config = genai.GenerationConfig()
    params = settings.params
    config.max_new_tokens = params.max_new_tokens or params.DEFAULT_MAX_NEW_TOKENS
    config.do_sample, config.apply_chat_template = False, False
    pipeline.generate(texts[:1], [config])
    ready = time.monotonic()
    results = pipeline.generate(texts, [config] * len(texts))
    seconds = time.monotonic() - ready
    tokenizer = pipeline.get_tokenizer()
    tokens = sum(tokenizer.encode(result.m_generation_ids[0]).input_ids.shape[1] for result in results)
    precision = precision_of_compiled(compile_layer(device, properties), properties)
    return Run(tokens=tokens, precision=precision, seconds=seconds, startup_seconds=ready - started)
