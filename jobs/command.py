"""What the commands share: Hydra overrides in, exit codes out, no traceback for a user's mistake."""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import yaml

from hfray.config.build import build
from hfray.config.compose import compose, config_folder
from hfray.errors import ExitCode, SettingsError

T = TypeVar("T")


def settings_of(kind: type[T], doc: str | None, argv: list[str] | None = None) -> T:
    """The settings of the command line, composed and checked; `--cfg` prints them as composed and ends."""
    root = kind.ROOT
    keys = config_folder() / f"{root}.yaml"
    presets = ", ".join(sorted(path.stem for path in (config_folder() / "conf").glob("*.yaml")))
    presets = f"Presets (conf=...): {presets}. " if "- conf:" in keys.read_text() else ""
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{root}",
        description=doc,
        epilog=f"{presets}All keys, each with a comment: {keys}",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="Hydra overrides: conf=PRESET, group=choice, key=value"
    )
    parser.add_argument("--cfg", action="store_true", help="print the settings as composed, and end")
    arguments = parser.parse_intermixed_args(argv)
    values = compose(kind, arguments.overrides)
    if arguments.cfg:
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    return build(kind, values)


def run(main: Callable[[], int]) -> None:
    """Call a command's main and exit with its code; SIGTERM (`ray job stop`) counts as Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
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
    sys.exit(code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
