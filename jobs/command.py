"""What the commands share: overrides to settings, errors to exit codes, no traceback for a user's mistake."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import yaml

from hfray import interrupts
from hfray.config.build import build
from hfray.config.compose import Composed, compose, config_folder
from hfray.errors import ExitCode, SettingsError

T = TypeVar("T", bound=Composed)


def settings_of(kind: type[T], doc: str | None, argv: Sequence[str] | None = None) -> T:
    """The checked settings of a command line; with `--cfg`, print them and exit.

    Args:
        kind: the settings class of the command.
        doc: the command's docstring, for `--help`.
        argv: the words of the command line; None: those of this process.
    """
    parser = _parser(kind.ROOT, doc)
    arguments = parser.parse_intermixed_args(argv)
    values = compose(kind, arguments.overrides)
    settings = build(kind, values)
    if arguments.cfg:
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    return settings


def run(main: Callable[[], int]) -> None:
    """Call a command's main and exit with its code; SIGTERM (`ray job stop`) and SIGHUP count as Ctrl-C."""
    interrupts.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: an ASCII terminal must not end the command
    try:
        code = main()
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        code = ExitCode.UNUSABLE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = ExitCode.INTERRUPTED
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        code = ExitCode.FAILED
    interrupts.end()
    sys.exit(code)


def _parser(root: str, doc: str | None) -> argparse.ArgumentParser:
    keys = config_folder() / f"{root}.yaml"
    presets = ", ".join(sorted(path.stem for path in (config_folder() / "conf").glob("*.yaml")))
    presets = f"Presets (conf=...): {presets}. " if "- conf:" in keys.read_text() else ""
    parser = argparse.ArgumentParser(
        prog=sys.argv[0] if sys.argv[0] == f"hfray {root}" else f"python -m jobs.{root}",
        description=doc,
        epilog=f"{presets}All keys, each with a comment: {keys}",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="conf=PRESET, group=choice, key=value")
    parser.add_argument("--cfg", action="store_true", help="print the composed settings and exit")
    return parser
