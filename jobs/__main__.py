"""`hfray COMMAND ...` is `python -m jobs.COMMAND ...`."""

from __future__ import annotations

import importlib
import os
import sys

from jobs.command import run

COMMANDS = ("batch", "serve", "export", "bench", "compare", "status")


def main() -> None:
    """Run the command that the first word names, with the other words. Exits with the command's code."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        sys.exit(0)
    if name not in COMMANDS:
        print(f"error: {name}: there is no such command.\n\n{_usage()}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"hfray {name}", *words]
    sys.path.insert(0, os.getcwd())  # as `python -m` does, for prompt._target_ in the user's module
    run(importlib.import_module(f"jobs.{name}").main)


def _usage() -> str:
    lines = ["usage: hfray COMMAND [key=value ...]", ""]
    for name in COMMANDS:
        first_line = (importlib.import_module(f"jobs.{name}").__doc__ or "").partition("\n")[0]
        lines.append(f"  {name:<8} {first_line}")
    return "\n".join(
        [*lines, "", "`hfray COMMAND --help` lists the presets of a command and shows where its keys are."]
    )


if __name__ == "__main__":
    main()
