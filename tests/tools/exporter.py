"""One process for several exports: the imports of optimum-intel take longer than the export of a small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from hfray.models.openvino_ir import NO_TELEMETRY

COMMAND = ["-m", "optimum.commands.optimum_cli"]
# Every export runs in a fork of a process that has imported what the command imports.
SERVER = """
import json, os, sys
import optimum.exporters.openvino.__main__, optimum.intel.openvino.quantization
from optimum.commands.optimum_cli import main
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = ["optimum-cli", *json.loads(line)]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.exit(main())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"\\nexit code {code}", flush=True)
"""


class Exporter:
    """`run` stands in for `hfray.models.openvino_ir._run`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | NO_TELEMETRY,
        )

    def run(self, command: list[str], on_line: Callable[[str], None] | None) -> tuple[int, list[str]]:
        assert command[1:3] == COMMAND
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command[3:]) + "\n")
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.startswith("exit code "):
                return int(line.split()[-1]), lines
            if line.strip():
                lines.append(line.strip())
                if on_line is not None:
                    on_line(line.strip())
        raise RuntimeError(f"the process of the exports ended: {lines}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
