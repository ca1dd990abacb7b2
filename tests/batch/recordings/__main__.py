"""Record a job; see the package."""

import sys

from tests.batch.recordings import main

main(*sys.argv[1:])
