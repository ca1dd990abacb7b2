"""Serve the batch job's engine online with OpenAI's API, until interrupted.

python -m jobs.serve [conf=PRESET] [serve.port=8000] [key=value ...]
"""

from __future__ import annotations

import sys

from hfray.config.serve import ServeSettings
from jobs.command import run, settings_of


def main() -> int:
    settings = settings_of(ServeSettings, __doc__)
    from hfray.serve.deployment import write_config
    from hfray.serve.server import run_service

    if settings.emit is not None:
        write_config(settings.emit, settings, sys.argv[1:])
        print(f"written: {settings.emit}")
        return 0
    run_service(settings)
    return 0


if __name__ == "__main__":
    run(main)
