"""Measure contestants side by side: the same prompts, each contestant in its own process, several rounds in turn."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hfray.config.formats import computing_format, format_name, format_of
from hfray.config.secrets import to_plain
from hfray.engines.precision import TORCH, cpu_computes_bf16
from hfray.errors import SettingsError
from hfray.runs.words import precision_words
from hfray.tools.bench_cases import BenchOptions, BenchSettings, write_case
from hfray.tools.bench_contestants import Run
from hfray.urls import absolute

RESULT = re.compile(r"^RESULT .*?out_tokens=(?P<tokens>\d+) t=(?P<seconds>[\d.]+)(?P<more>.*)", re.MULTILINE)
PRECISION = re.compile(r" precision=(\w+)")


def run_bench(settings: BenchSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run every contestant `bench.rounds` times in turn.

    Returns medians, ratios, all runs, settings and versions, and writes them to `output.path/bench-CASE.json`.

    Raises:
        SettingsError: the model or the input cannot be used, or no contestant is left.
        RuntimeError: a contestant failed; the message ends with its error output. Or two contestants do not compute in
            the same precision.
    """
    from hfray.runs.fingerprint import versions

    folder = Path(absolute(settings.output.path))
    folder.mkdir(parents=True, exist_ok=True)
    records = write_case(settings, folder / "records.jsonl")
    names = _names(settings, say)
    model = _model_folders(settings)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(settings.bench.rounds):
        for name in names:
            run = _run(name, settings, folder, records, model, _precision(settings, runs))
            runs[name].append(run)
            told = f"{run.tokens} tokens in {run.seconds:.1f} s, {run.rate:.1f} tokens/s in {run.precision}"
            say(f"round {number + 1} {name}: {told}")
            check_precisions(settings, runs)
    result = {
        "case": settings.bench.case,
        "rows": records,
        "rounds": settings.bench.rounds,
        "medians": {name: _median(name, runs, names[0]) for name in names},
        "runs": {name: [asdict(run) for run in several] for name, several in runs.items()},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": versions(),
        "settings": to_plain(settings),
    }
    (folder / f"bench-{settings.bench.case}.json").write_text(json.dumps(result, indent=2, default=str) + "\n")
    return result


def format_table(result: dict[str, Any]) -> str:
    """The medians as a Markdown table."""
    head = "| contestant | computes in | tokens/s | ratio | first row, s | start to end, s | steps at least 80 % full |\n|---|---|---|---|---|---|---|"
    lines = [
        f"| {name} | {result['runs'][name][0]['precision']} | {m['tokens_per_second']:.1f} | {m['ratio']:.2f} | {_or(m['first_row_seconds'], '.1f')} "
        f"| {m['wall_seconds']:.1f} | {_or(m['full_steps'], '.0%')} |"
        for name, m in result["medians"].items()
    ]
    return "\n".join([head, *lines])


def _names(settings: BenchSettings, say: Callable[[str], None]) -> list[str]:
    """Everything that can run here: contestants, variants of the job, peers. Says what is left out, and why."""
    options, contestants = settings.bench, list(settings.bench.contestants)
    if settings.backend.name != "openvino" and "genai" in contestants:
        contestants.remove("genai")
        say(f"left out: genai, which needs backend=openvino (backend={settings.backend.name})")
    peers = options.usable_peers()
    for name in options.peers:
        if name not in peers:
            say(f"left out: {name}, because bench.paths lacks a path that its command needs")
    names = [*contestants, *options.variants, *peers]
    if not names:
        raise SettingsError(
            f"bench.contestants={options.contestants}: nothing is left to run. Add engine or job, or the peers' bench.paths."
        )
    return names


def _model_folders(settings: BenchSettings) -> dict[str, str]:
    """The model's Hugging Face folder as `hf`, and for OpenVINO its IR folder as `ir`. The fake backend has no model."""
    from hfray.models.source import fetch, prepare

    if settings.backend.name == "fake":
        return {}
    if settings.backend.name == "openvino":
        return {"ir": str(prepare(settings)), "hf": str(fetch(settings.model))}
    return {"hf": str(prepare(settings))}


def check_precisions(settings: BenchSettings, runs: dict[str, list[Run]]) -> None:
    """Raise RuntimeError if two contestants do not compute in the same precision.

    A variant of the job that sets `model.precision` itself is measured for that difference.
    """
    told = {
        name: run.precision for name, several in runs.items() for run in several if not _sets_precision(settings, name)
    }
    for name, precision in told.items():
        if not precision:
            raise RuntimeError(
                f"bench.peers.{name}: does not tell what it computes in. Print precision=NAME in its RESULT line, or set "
                f"bench.precisions.{name}=NAME."
            )
    if len(set(told.values())) > 1:
        each = ", ".join(f"{name} in {precision}" for name, precision in told.items())
        raise RuntimeError(
            f"the contestants do not compute in the same precision: {each}. Set model.precision to what all of them can "
            "do (exact: fp32), or leave some of them out."
        )


def _sets_precision(settings: BenchSettings, name: str) -> bool:
    changed = settings.bench.variants.get(name, {}).get("model")
    return isinstance(changed, dict) and "precision" in changed


def _precision(settings: BenchSettings, runs: dict[str, list[Run]]) -> str:
    """What the peers should compute in: what the settings ask for, or what the first contestant computed in."""
    told = next((run.precision for several in runs.values() for run in several), "")
    return format_of(settings.asked_precision) or computing_format(told) or ("bf16" if cpu_computes_bf16() else "fp32")


def _run(name: str, settings: BenchSettings, folder: Path, records: int, model: dict[str, str], precision: str) -> Run:
    started = time.monotonic()
    if name in settings.bench.peers:
        run = _run_peer(settings.bench, name, folder, records, model, precision)
    elif name == "job" or name in settings.bench.variants:
        run = _run_job(settings, folder, settings.bench.variants.get(name, {}))
    else:
        payload = {"settings": to_plain(settings), "records": str(folder / "records.jsonl"), "model": model}
        run = Run(
            **json.loads(
                _output([sys.executable, "-m", "hfray.tools.bench_process", name, json.dumps(payload, default=str)])
            )
        )
    run.wall_seconds = time.monotonic() - started
    return run


def _run_peer(
    options: BenchOptions, name: str, folder: Path, records: int, model: dict[str, str], precision: str
) -> Run:
    command = options.peers[name]
    names = options.paths | {
        "model": model.get("ir") or model.get("hf", "fake"),
        "hf": model.get("hf", "fake"),
        "prompts": folder / "records.jsonl",
        "n": records,
        "dtype": TORCH.get(precision, "auto"),
    }
    text = _output([part.format(**names) for part in command])
    found = RESULT.search(text)
    if found is None:
        raise RuntimeError(f"bench.peers: {shlex.join(command)} printed no RESULT line: {text[-500:]}")
    told = PRECISION.search(found["more"])
    declared = options.precisions.get(name, "").format(precision=precision)
    return Run(
        tokens=int(found["tokens"]),
        precision=format_name(told[1]) if told else declared,
        seconds=float(found["seconds"]),
    )


def _run_job(settings: BenchSettings, folder: Path, changes: dict[str, Any]) -> Run:
    """The whole job in a separate process. Its rate counts from the moment the engine is ready to the last row."""
    from omegaconf import OmegaConf

    output = folder / "job"
    plain = to_plain(settings)
    config = {
        key: plain[key]
        for key in ("model", "task", "backend", "device", "generation", "response", "prompt", "workers", "errors")
    }
    config["input"] = {"path": str(folder / "records.jsonl")}
    config["output"] = {"path": str(output), "overwrite": True}
    config = OmegaConf.to_container(OmegaConf.merge(config, changes))
    code = (
        "import json, sys, time; started = time.time(); from hfray.config.batch import BatchSettings; from hfray.config.build import build;"
        "from hfray.batch.job import run_batch; run_batch(build(BatchSettings, json.loads(sys.argv[1])), started)"
    )
    _output([sys.executable, "-c", code, json.dumps(config, default=str)])
    summary = json.loads((output / "_hfray" / "summary.json").read_text())
    times, written = summary["timeline"], summary["written"]
    return Run(
        tokens=written["generated_tokens"],
        precision=precision_words(summary["engine"]["precisions"]),
        prompt_tokens=written["prompt_tokens"],
        seconds=times["last_row"] - times["engine_ready"],
        startup_seconds=times["engine_ready"] - times["command"],
        first_row_seconds=times["first_row"] - times["command"],
        full_steps=summary["engine"]["share_of_full_steps"],
    )


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)[:200]} failed: {done.stderr[-1500:]}")
    return done.stdout


def _median(name: str, runs: dict[str, list[Run]], baseline: str) -> dict[str, Any]:
    """Medians of a contestant. The ratio is the median of the rounds' ratios, so a drift of the machine cancels out."""

    def median(field: str) -> float | None:
        values = [getattr(run, field) for run in runs[name] if getattr(run, field) is not None]
        return statistics.median(values) if values else None

    ratios = [mine.rate / theirs.rate for mine, theirs in zip(runs[name], runs[baseline], strict=True)]
    fields = (
        "tokens",
        "prompt_tokens",
        "seconds",
        "startup_seconds",
        "first_row_seconds",
        "full_steps",
        "wall_seconds",
    )
    return {field: median(field) for field in fields} | {
        "tokens_per_second": median("rate"),
        "ratio": statistics.median(ratios),
    }


def _or(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
