"""Compare two output folders of the same input on one page: fp32 against int8, or one prompt against another.

python -m jobs.compare FIRST SECOND [output.path=compare.html]
"""

from __future__ import annotations

import sys
from pathlib import Path

from hfray.errors import SettingsError
from hfray.runs.compare import CompareSettings, Comparison, compare
from hfray.runs.compare_page import page
from jobs.command import run, settings_of


def main() -> int:
    settings = settings_of(CompareSettings, __doc__, _named(sys.argv[1:]))
    result = compare(settings)
    path = Path(settings.output.path).expanduser()
    try:
        path.write_text(page(settings, result), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"output.path={path}: cannot be written ({error}). Name another file.") from error
    print("\n".join(_lines(result)))
    print(f"page: {path}")
    return 0


def _named(arguments: list[str]) -> list[str]:
    """The arguments with the keys `first` and `second` in front of the two folders."""
    names, named = iter(("first", "second")), []
    for argument in arguments:
        key = None if "=" in argument or argument.startswith("-") else next(names, None)
        named.append(argument if key is None else f"{key}={argument}")
    return named


def _lines(result: Comparison) -> list[str]:
    share = f"{result.same / result.answered:.1%}" if result.answered else "–"
    lines = [f"{result.same:,} of {result.answered:,} answers are equal ({share})"]
    if result.only_first or result.only_second:
        lines.append(f"rows in the first only: {result.only_first:,}; in the second only: {result.only_second:,}")
    if result.failed_first or result.failed_second or result.failed_both:
        failed = f"{result.failed_first:,}; in the second only: {result.failed_second:,}"
        lines.append(f"rows that failed in the first only: {failed}; in both: {result.failed_both:,}")
    for name, side in zip(("first", "second"), result.sides, strict=True):
        speed = f", {side.speed[0]:,.1f} rows/s, {side.speed[1]:,.0f} tokens/s" if side.speed else ""
        computed = f", computed in {' and '.join(side.about.precisions)}" if side.about.precisions else ""
        lines.append(f"{name}: {side.lengths.mean:,.1f} tokens a row{speed}{computed}")
    return lines


if __name__ == "__main__":
    run(main)
