"""Run all checks and print a table last.

python -m tests.gpu FOLDER                      # on cuda:0, under 9 minutes on an H200
python -m tests.gpu FOLDER --device cpu --small # without a GPU: tiny models, to see that it runs
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import hfray.engines.torch  # noqa: F401  sets the allocator before torch is imported

import torch  # isort: skip

from tests.gpu import correctness, environment, limits, speed, steps  # isort: skip
from tests.gpu.report import Report  # isort: skip

PARTS = ("environment", "contract", "correctness", "steps", "refill", "limits", "speed", "devices")


def main() -> int:
    """Run the checks; returns 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("folder", type=Path, help="for gpu.json and table.md")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="tiny models")
    parser.add_argument("--seconds", type=float, default=510, help="no measurement starts that would end later")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    device, small = options.device, options.small
    torch.set_float32_matmul_precision("highest")  # no TF32
    report = Report(options.seconds)
    checks = {
        "environment": [
            functools.partial(environment.describe, report, device),
            functools.partial(environment.ceilings, report, device, small),
        ],
        "contract": [functools.partial(environment.contract, report, device, small)],
        "correctness": [
            functools.partial(correctness.tokens_of_generate, report, device, small),
            functools.partial(correctness.logit_errors, report, device, small),
        ],
        "steps": [functools.partial(steps.steps, report, device, small)],
        "refill": [functools.partial(steps.refill, report, device, small)],
        "limits": [
            functools.partial(limits.memory_cap, report, device, small),
            functools.partial(limits.soak, report, device, small),
        ],
        "speed": [functools.partial(speed.speed, report, name, device, small) for name in ("bloom", "llama")],
        "devices": [functools.partial(environment.devices, report, device)],
    }
    report.run("warm-up", functools.partial(steps.warm_up, device, small))
    # The short checks run first, so that a slow device leaves out only measurements.
    for part in sorted(options.only, key=lambda part: (part == "speed", PARTS.index(part))):
        for check in checks[part]:
            report.run(part, check)
            report.write(options.folder / "gpu.json")
    table = report.table()
    (options.folder / "table.md").write_text(table + "\n")
    print(f"\n{table}\n")
    print(f"{len(report.findings)} findings, {len(report.failed)} failed, in {options.seconds - report.left:.0f} s")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
