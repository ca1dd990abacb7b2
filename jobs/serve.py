"""The batch job's engine online, behind an API that speaks OpenAI's protocol, until interrupted.

python -m jobs.serve [conf=PRESET] [serve.port=8000] [key=value ...]
"""

from __future__ import annotations

import sys

from hfray.config.serve import ServeSettings
from jobs.command import run, settings_of


def main() -> int:
    settings = settings_of(ServeSettings, __doc__)
    from hfray.serve.deployment import run_service, write_config

    if settings.emit is not None:
        print(f"written: {write_config(settings, sys.argv[1:])}")
        return 0
    run_service(settings)
    return 0


if __name__ == "__main__":
    run(main)
