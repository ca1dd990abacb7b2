"""`_hfray/run.json`: how the rows of an output folder are made. The newest run writes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hfray.data.output import OutputFolder
from hfray.runs.fromjson import load

ABOUT = "run.json"


@dataclass(slots=True)
class Chosen:
    """The engine that `backend=auto` became, `vllm`, `paged` or `transformers`, and why."""

    engine: str = ""
    reason: str = ""


@dataclass(slots=True)
class About:
    """The settings of the newest run, the fingerprint of what decides the text, and the versions of the libraries.

    `precisions` are what the engines of all runs that made rows of the folder computed in. `chosen` are the engines of
    pools with `backend=auto`, by the pool's name; the name of a job's only pool is empty.
    """

    run_id: str = ""
    started: str = ""
    fingerprint: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    precisions: list[str] = field(default_factory=list)
    chosen: dict[str, Chosen] = field(default_factory=dict)


def read_about(output: OutputFolder, key: str = "output.path") -> About | None:
    """run.json, or None if there is none. Raises SettingsError if the file is damaged."""
    return load(output, ABOUT, About, "Restore the file, or start over with output.overwrite=true", key)


def add_to_about(output: OutputFolder, **values: object) -> None:
    """Write more values into run.json."""
    output.write_json(ABOUT, (output.read_json(ABOUT) or {}) | values)
