"""`_hfray/owner.json`: the run that may write to an output folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from hfray.data.output import OutputFolder
from hfray.runs.fromjson import load
from hfray.runs.liveness import ProcessMark

OWNER = "owner.json"


@dataclass(frozen=True, slots=True)
class Owner(ProcessMark):
    """A run and its process."""

    run_id: str = ""

    @classmethod
    def of_this_run(cls, run_id: str) -> Owner:
        return cls(**asdict(ProcessMark.of_this_process()), run_id=run_id)


def read_owner(output: OutputFolder) -> Owner | None:
    """The owner of the folder, or None if it never had one. Raises SettingsError if the file is damaged."""
    return load(output, OWNER, Owner, "If no run writes to the folder now, delete the file")
