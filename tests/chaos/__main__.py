"""Disturb jobs at random moments, and count the rows that are lost, repeated, wrong or answered twice.

python -m tests.chaos [--times N] [--rows N] [--seed S] [--only FAULT ...]

Every fault hits a job over the same table, and the output is compared with that of an undisturbed job. The rows of the
`fake` engine take a fixed time, and its answer log counts all answered rows, also those that a crash threw away. The
exit code is 1 if any job broke its promise.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos import crashes, surroundings
from tests.chaos.lab import Lab
from tests.chaos.outcome import Outcome, print_table

FAULTS = {fault.__name__: fault for fault in (*crashes.FAULTS, *surroundings.FAULTS, *crashes.REAL_FAULTS)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="how often a fault that can be repeated is injected")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS), metavar="FAULT")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), arguments.times, arguments.rows, random.Random(arguments.seed))
        for name in arguments.only:
            outcomes.append(FAULTS[name](lab))
            print_table(outcomes)
    return 1 if any(outcome.is_bad for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
