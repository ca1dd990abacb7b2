"""Run a table of records through a prompt template and a Hugging Face model, and write Parquet.

python -m jobs.batch input.path=questions.jsonl output.path=answers [conf=PRESET] [key=value ...]
"""

from __future__ import annotations

import sys
import time

from hfray.config.batch import BatchSettings
from jobs.command import run, settings_of


def main() -> int:
    started = time.time()
    settings = settings_of(BatchSettings, __doc__)
    from jobs.console import print_plan, print_summary

    if settings.plan:
        from hfray.tools.plan import make_plan

        print_plan(make_plan(settings), sys.stdout)
        return 0
    from hfray.batch.job import run_batch

    summary = run_batch(settings, started)
    print_summary(summary, sys.stdout)
    return summary.exit_code


if __name__ == "__main__":
    run(main)
