"""`_hfray/owner.json`: the run that may write to an output folder."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from hfray.data.output import OutputFolder
from hfray.runs.fromjson import load
from hfray.runs.liveness import ProcessMark

OWNER = "owner.json"


@dataclass(frozen=True, slots=True)
class Owner(ProcessMark):
    """A run and its process."""

    run_id: str = ""

    def blocks(self) -> bool:
        """Whether this run is another live process of this host, so that no new run may start."""
        return self.is_here and self.pid != os.getpid() and self.lives()


def read_owner(output: OutputFolder) -> Owner | None:
    """The owner of the folder, or None if it never had one. Raises SettingsError if the file is damaged."""
    return load(output, OWNER, Owner, "If no run writes to the folder now, delete the file")


def write_owner(output: OutputFolder, run_id: str) -> None:
    """Make the run of this process the owner."""
    output.write_json(OWNER, asdict(Owner(**asdict(ProcessMark.of_this_process()), run_id=run_id)))
