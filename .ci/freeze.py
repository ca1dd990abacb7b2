"""Print the versions of the installed packages as a constraints file: what `make constraints` writes.

Leaves out hfray itself and the local part of a version (`+cpu`), which package indexes do not have.
"""

from __future__ import annotations

import sys
from importlib.metadata import distributions

HEADER = """\
# The exact versions that the test suite passed with. `make install` and Dockerfile.openvino use this file.
# `make constraints` writes it; do not edit it by hand.
# vLLM is missing: it pins torch, so it needs an environment of its own, without this file.
"""
LEFT_OUT = {"hfray", "pip", "setuptools", "wheel"}


def main() -> None:
    versions = {d.metadata["Name"]: d.version.partition("+")[0] for d in distributions()}
    lines = [f"{name}=={versions[name]}\n" for name in sorted(versions, key=str.lower) if name not in LEFT_OUT]
    sys.stdout.write(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
