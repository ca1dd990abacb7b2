"""Hugging Face model to OpenVINO IR, by optimum-intel's own command, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from hfray.config import EngineSettings, SettingsError
from hfray.modelfolder import channels
from hfray.models import cached

GROUP_SIZES = (128, 64, 32, 16)
TASKS = {
    "text-generation": "text-generation-with-past",
    "text2text-generation": "text2text-generation-with-past",
    "summarization": "text2text-generation-with-past",
    "translation": "text2text-generation-with-past",
}


def export_cached(folder: Path, settings: EngineSettings) -> Path:
    """The model in `folder` as IR, from the cache, or exported into it. Raises SettingsError."""
    backend = settings.backend
    group = backend.group_size or (fitting_group_size(folder) if backend.weight_format == "int4" else None)
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
) -> None:
    """Write the Hugging Face model in `source` as an IR folder with its tokenizer.

    Args:
        weight_format: fp32, fp16, int8 or int4.
        group_size: weights that share one int4 scale; None takes the largest that divides the model's channels.

    Raises:
        SettingsError: optimum-intel is not installed, or cannot export this model; with its last words.
    """
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    command += ["--model", str(source), "--task", TASKS[task], "--weight-format", weight_format]
    if weight_format == "int4":
        command += ["--group-size", str(group_size or fitting_group_size(source))]
    if trust_remote_code:
        command.append("--trust-remote-code")
    done = subprocess.run([*command, str(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-3:]
        hint = " Install it with `pip install hfray[export]`." if "No module named" in done.stderr else ""
        raise SettingsError(f"model.source={source} cannot be exported to OpenVINO: {' '.join(last)}{hint}")


def fitting_group_size(folder: Path) -> int:
    """The largest group size that divides the input width of every linear layer that the config tells of."""
    widths = channels(folder)
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    return -1  # one scale for a whole channel


def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("optimum-intel", "openvino", "transformers"):
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("")
    return found
