"""Show the progress of a run from its output folder, in another terminal or on another machine.

python -m jobs.status output.path=answers
"""

from __future__ import annotations

from hfray.runs.status import StatusSettings, describe, read_status
from jobs.command import run, settings_of


def main() -> int:
    settings = settings_of(StatusSettings, __doc__)
    print("\n".join(describe(read_status(settings.output.path))))
    return 0


if __name__ == "__main__":
    run(main)
