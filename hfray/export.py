"""Hugging Face model to OpenVINO IR, by optimum-intel's own command, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from hfray.config.engine import STRICT, EngineSettings, OpenVINOBackend
from hfray.errors import SettingsError
from hfray.modelfolder import TOKENIZER_FILES, channels, is_ir
from hfray.modelfolder import size as folder_size
from hfray.models import cached, fetch

if TYPE_CHECKING:
    from rich.console import Console


GROUP_SIZES = (128, 64, 32, 16)
TASKS = {
    "text-generation": "text-generation-with-past",
    "text2text-generation": "text2text-generation-with-past",
    "summarization": "text2text-generation-with-past",
    "translation": "text2text-generation-with-past",
}
TRIAL_PROMPT, TRIAL_TOKENS = "The capital of France is", 24
LAST_WORDS = 3  # lines of optimum's output in an error


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportOutput:
    """The IR folder to write."""

    path: str
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportSettings(EngineSettings):
    """An export: model, task, weight format, and where to."""

    ROOT: ClassVar = "export"

    output: ExportOutput

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backend, OpenVINOBackend):
            raise ValueError(f"backend={self.backend.name}: an export makes an OpenVINO folder. Use backend=openvino.")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was made: sizes in bytes of all files before and after, and the text that the folder's model wrote."""

    source: str
    folder: Path
    weight_format: str
    group_size: int | None
    bytes_before: int
    bytes_after: int
    seconds: float
    prompt: str
    text: str

    def __str__(self) -> str:
        group = f", groups of {self.group_size}" if self.group_size else ""
        share = self.bytes_after / self.bytes_before
        return (
            f"{self.folder}: {self.source} in {self.weight_format}{group}\n"
            f"{_mb(self.bytes_before)} before, {_mb(self.bytes_after)} after ({share:.0%}), in {self.seconds:.0f} s\n"
            f"It loads, and continues {self.prompt!r}: {self.text!r}"
        )


def run_export(settings: ExportSettings, console: Console) -> ExportReport:
    """Export the settings' model to `output.path`, whole or not at all, and try the folder. Progress on `console`.

    Raises:
        SettingsError: the model cannot be exported, or there is something at `output.path` already.
        RuntimeError: the folder was written, and does not load or writes nothing.
    """
    started, target = time.monotonic(), Path(settings.output.path).expanduser().absolute()
    if target.exists() and not settings.output.overwrite and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError(
            f"output.path={settings.output.path}: is there already. Name another folder, or add output.overwrite=true."
        )
    backend = settings.backend
    with console.status(f"fetching {settings.model.source}") as status:
        source = fetch(settings.model)
        if is_ir(source):
            raise SettingsError(f"model.source={settings.model.source}: is an OpenVINO IR folder already.")
        group = group_size(source, backend)

        def show(line: str) -> None:
            status.update(f"exporting to {backend.weight_format}: {line[:80]}")

        show("starting")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as aside:
            made = Path(aside) / "ir"
            trust = settings.model.trust_remote_code
            options = {"task": settings.task, "weight_format": backend.weight_format, "group_size": group}
            export(source, made, trust_remote_code=trust, on_line=show, **options)
            status.update("trying the folder")
            text = try_folder(made, settings)
            if target.exists():
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            made.rename(target)
    return ExportReport(
        source=settings.model.source,
        folder=target,
        weight_format=backend.weight_format,
        group_size=group,
        bytes_before=folder_size(source),
        bytes_after=folder_size(target),
        seconds=time.monotonic() - started,
        prompt=TRIAL_PROMPT,
        text=text,
    )


def try_folder(folder: Path, settings: EngineSettings) -> str:
    """Load an IR folder as a job would, and have it write; returns its text. Raises RuntimeError."""
    from hfray.completion import Prompt
    from hfray.engines.load import load_engine
    from hfray.engines.loop import EngineLoop
    from hfray.params import GenerationParams

    try:
        loop = EngineLoop(
            load_engine(replace(settings, backend=replace(settings.backend, kv_cache_gib=1)), folder=folder)
        )
        try:
            params = GenerationParams(max_new_tokens=TRIAL_TOKENS, temperature=0)
            completion = loop.generate([Prompt(TRIAL_PROMPT)], params)[0]
        finally:
            loop.close()
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(f"The exported folder does not work: {error}") from error
    if completion.error is not None:
        raise RuntimeError(f"The exported folder does not work: {completion.error}")
    return completion.text


def export_cached(folder: Path, settings: EngineSettings) -> Path:
    """The model in `folder` as IR, from the cache, or exported into it. Raises SettingsError."""
    backend = settings.backend
    group = group_size(folder, backend)
    stat = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
    decides = [str(folder), stat, settings.task, backend.weight_format, group, _versions()]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]
    name = f"{folder.name}-{backend.weight_format}-{digest}"
    return cached(
        "openvino",
        name,
        lambda target: export(
            folder,
            target,
            task=settings.task,
            weight_format=backend.weight_format,
            group_size=group,
            trust_remote_code=settings.model.trust_remote_code,
        ),
    )


def export(
    source: Path,
    target: Path,
    *,
    task: str = "text-generation",
    weight_format: str = "fp32",
    group_size: int | None = None,
    trust_remote_code: bool = False,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Write the Hugging Face model in `source` as an IR folder with its tokenizer.

    Args:
        weight_format: fp32, fp16, int8 or int4.
        group_size: weights that share one int4 scale; None takes the largest that divides the model's channels.
        on_line: called with each line that the export prints, for progress.

    Raises:
        SettingsError: optimum-intel is not installed, or cannot export this model; with its last words.
    """
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    command += ["--model", str(source), "--task", TASKS[task], "--weight-format", weight_format]
    if weight_format == "int4":
        command += ["--group-size", str(group_size or fitting_group_size(source))]
    if trust_remote_code:
        command.append("--trust-remote-code")
    lines: deque[str] = deque(maxlen=200)
    process = subprocess.Popen(
        [*command, str(target)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        for line in process.stdout:  # a progress bar's carriage returns end lines too
            if line.strip():
                lines.append(line.strip())
                if on_line is not None:
                    on_line(line.strip())
        code = process.wait()
    finally:
        process.kill()  # nothing, once it has ended; an interrupted export must not go on alone
    last = " ".join(list(lines)[-LAST_WORDS:])
    if code:
        hint = " Install it with `pip install hfray[export]`." if any("No module named" in x for x in lines) else ""
        raise SettingsError(f"model.source={source} cannot be exported to OpenVINO: {last}{hint}")
    missing = [name for name in TOKENIZER_FILES if not (target / name).exists()]
    if missing and task == "text-generation":  # optimum-intel says so, and goes on
        raise SettingsError(
            f"model.source={source} cannot be exported to OpenVINO: its tokenizer cannot be converted ({missing[0]} was "
            f"not made). Use backend=transformers. Last said: {last}"
        )


def group_size(folder: Path, backend: OpenVINOBackend) -> int | None:
    """The group size of an int4 export, None for other formats. Raises SettingsError where the one given cannot be."""
    if backend.weight_format != "int4":
        return None
    fitting = fitting_group_size(folder)
    if not backend.group_size:
        return fitting
    uneven = [width for width in channels(folder) if backend.group_size > 0 and width % backend.group_size]
    if uneven:
        raise SettingsError(
            f"backend.group_size={backend.group_size}: does not divide the model's channels ({uneven[0]} wide). "
            f"Use backend.group_size={fitting}, or leave it out."
        )
    return backend.group_size


def fitting_group_size(folder: Path) -> int:
    """The largest group size that divides the input width of every linear layer that the config tells of."""
    widths = channels(folder)
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    return -1  # one scale for a whole channel


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:,.1f} MB"


def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("optimum-intel", "openvino", "openvino-tokenizers", "transformers"):
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("")
    return found
