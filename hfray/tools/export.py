"""Convert a Hugging Face model into an OpenVINO IR folder, and try the folder."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from hfray.config.backend import OpenVINOBackend
from hfray.config.engine import STRICT, EngineSettings
from hfray.errors import SettingsError
from hfray.models.folder import is_ir
from hfray.models.folder import size as folder_size
from hfray.models.openvino_ir import export, group_size
from hfray.models.source import fetch
from hfray.urls import absolute

if TYPE_CHECKING:
    from rich.console import Console


TRIAL_PROMPT, TRIAL_TOKENS = "The capital of France is", 24


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportOutput:
    """The IR folder to write."""

    path: str
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportSettings(EngineSettings):
    """The settings of an export: model, task, weight format, target folder."""

    ROOT: ClassVar[str] = "export"

    output: ExportOutput

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backend, OpenVINOBackend):
            raise ValueError(f"backend={self.backend.name}: an export makes an OpenVINO folder. Use backend=openvino.")

    @property
    def openvino(self) -> OpenVINOBackend:
        """The backend, which is always OpenVINO."""
        assert isinstance(self.backend, OpenVINOBackend)  # checked above
        return self.backend


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The result of an export: the sizes of all files in bytes before and after, and the text of the trial."""

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
    """Export the model to `output.path`, completely or not at all, and try the folder. Shows progress on `console`.

    Raises:
        SettingsError: the model cannot be exported, or `output.path` exists already.
        RuntimeError: the exported folder does not load, or generates no text.
    """
    started, target = time.monotonic(), Path(absolute(settings.output.path))
    if target.exists() and not settings.output.overwrite and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError(
            f"output.path={settings.output.path}: exists already. Name another folder, or add output.overwrite=true."
        )
    backend = settings.openvino
    with console.status(f"fetching {settings.model.source}") as status:
        source = fetch(settings.model)
        if is_ir(source):
            raise SettingsError(f"model.source={settings.model.source}: the folder is an OpenVINO IR folder already.")
        group = group_size(source, backend)

        def show(line: str) -> None:
            status.update(f"exporting to {backend.export_format}: {line[:80]}")

        show("starting")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as aside:
            made = Path(aside) / "ir"
            trust = settings.model.trust_remote_code
            options = {"task": settings.task, "weight_format": backend.export_format, "group_size": group}
            export(source, made, trust_remote_code=trust, on_line=show, **options)
            status.update("trying the folder")
            text = try_folder(made, settings)
            if target.exists():
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            made.rename(target)
    return ExportReport(
        source=settings.model.source,
        folder=target,
        weight_format=backend.export_format,
        group_size=group,
        bytes_before=folder_size(source),
        bytes_after=folder_size(target),
        seconds=time.monotonic() - started,
        prompt=TRIAL_PROMPT,
        text=text,
    )


def try_folder(folder: Path, settings: ExportSettings) -> str:
    """Load an IR folder as a job would, and generate a text. Returns the text. Raises RuntimeError."""
    from hfray.completion import Prompt
    from hfray.engines.load import load_engine
    from hfray.inference.loop import EngineLoop
    from hfray.params import GenerationParams

    try:
        loop = EngineLoop(
            load_engine(replace(settings, backend=replace(settings.openvino, kv_cache_gib=1)), folder=folder)
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
    return completion.text or ""


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:,.1f} MB"
