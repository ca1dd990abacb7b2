"""Export a Hugging Face model to OpenVINO IR: runs optimum-intel's command in a separate process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from hfray.config.backend import OpenVINOBackend
from hfray.config.engine import EngineSettings
from hfray.errors import SettingsError
from hfray.models.cache import cached
from hfray.models.folder import TOKENIZER_FILES, channels

GROUP_SIZES = (128, 64, 32, 16)
TASKS = {
    "text-generation": "text-generation-with-past",
    "text2text-generation": "text2text-generation-with-past",
    "summarization": "text2text-generation-with-past",
    "translation": "text2text-generation-with-past",
}
LAST_LINES = 3  # of optimum's output, in an error message
# OpenVINO's converter and NNCF send usage statistics, unless a CI runs them: about twenty events in an export, each in
# a process of its own that waits up to 3 seconds for an answer.
NO_TELEMETRY = {"CI": "true"}


def export_cached(folder: Path, settings: EngineSettings, backend: OpenVINOBackend) -> Path:
    """The IR folder of the model in `folder`: taken from the cache, or exported into the cache. Raises SettingsError."""
    group = group_size(folder, backend)
    stat = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
    identity = [str(folder), stat, settings.task, backend.export_format, group, tool_versions()]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    name = f"{folder.name}-{backend.export_format}-{digest}"
    return cached(
        "openvino",
        name,
        lambda target: export(
            folder,
            target,
            task=settings.task,
            weight_format=backend.export_format,
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
    """Export the Hugging Face model in `source`, with its tokenizer, to the IR folder `target`.

    Args:
        weight_format: fp32, fp16, int8 or int4.
        group_size: how many weights share one int4 scale; None chooses the largest size that divides the channels.
        on_line: called with each line that the export prints, for progress.

    Raises:
        SettingsError: optimum-intel is not installed, or it cannot export this model. The message quotes its last lines.
    """
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    command += ["--model", str(source), "--task", TASKS[task], "--weight-format", weight_format]
    if weight_format == "int4":
        command += ["--group-size", str(group_size or fitting_group_size(source))]
    if trust_remote_code:
        command.append("--trust-remote-code")
    code, lines = _run([*command, str(target)], on_line)
    last = " ".join(lines[-LAST_LINES:])
    if code:
        hint = " Install it with `pip install hfray[export]`." if any("No module named" in x for x in lines) else ""
        raise SettingsError(f"model.source={source} cannot be exported to OpenVINO: {last}{hint}")
    missing = [name for name in TOKENIZER_FILES if not (target / name).exists()]
    if missing and task == "text-generation":  # optimum-intel only warns about the tokenizer
        raise SettingsError(
            f"model.source={source} cannot be exported to OpenVINO: its tokenizer cannot be converted (the export did "
            f"not write {missing[0]}). Use backend=transformers. Last output: {last}"
        )


def _run(command: list[str], on_line: Callable[[str], None] | None) -> tuple[int, list[str]]:
    """Run a command; returns its exit code and its last lines of output."""
    lines: deque[str] = deque(maxlen=200)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | NO_TELEMETRY,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:  # universal newlines: a progress bar's carriage returns end lines too
            if line.strip():
                lines.append(line.strip())
                if on_line is not None:
                    on_line(line.strip())
        return process.wait(), list(lines)
    finally:
        process.kill()  # does nothing after a normal end; an interrupt must not leave the export running


def group_size(folder: Path, backend: OpenVINOBackend) -> int | None:
    """The group size of an int4 export; None for other formats. Raises SettingsError if `backend.group_size` is unfit."""
    if backend.weight_format != "int4":
        return None
    fitting = fitting_group_size(folder)
    if not backend.group_size:
        return fitting
    uneven = [width for width in channels(folder) if backend.group_size > 0 and width % backend.group_size]
    if uneven:
        raise SettingsError(
            f"backend.group_size={backend.group_size}: does not divide the model's layer width {uneven[0]}. "
            f"Use backend.group_size={fitting}, or remove the setting."
        )
    return backend.group_size


def fitting_group_size(folder: Path) -> int:
    """The largest group size that divides the input width of every linear layer named in the config."""
    widths = channels(folder)
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    return -1  # one scale per channel


def tool_versions() -> list[str]:
    """The versions of the packages that decide what an export contains; "" for one that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("optimum-intel", "openvino", "openvino-tokenizers", "transformers"):
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("")
    return found
