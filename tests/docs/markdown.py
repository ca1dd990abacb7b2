"""Shell blocks, code blocks and links of the project's Markdown pages."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "k8s/README.md")]
    + list((ROOT / "docs").glob("*.md"))
)
FENCE = re.compile(r"^(?P<run><!-- run -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
PATH_IN_CODE = re.compile(r"`(?P<path>(?:hfray|jobs|conf|tests|docs|k8s|examples)/[\w./-]*)`")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")

# Stands in for a program: appends the number of its arguments and the arguments to $RECORD, and does nothing else.
RECORDER = """#!/bin/bash
printf '%s\\0' "$#" "$@" >> "$RECORD"
"""


@dataclass(frozen=True)
class Block:
    """A fenced block. A page marks blocks that a test runs unchanged with `<!-- run -->`: `run` is true for these."""

    page: Path
    language: str
    text: str
    run: bool


def blocks(page: Path, language: str) -> list[Block]:
    found = [Block(page, m["language"], m["text"], bool(m["run"])) for m in FENCE.finditer(page.read_text())]
    return [block for block in found if block.language == language]


def job_commands(text: str, folder: Path) -> list[list[str]]:
    """The arguments `jobs.NAME ...` of every job that a shell block starts, as bash splits them. No job runs."""
    for name in ("python", "ray"):
        program = folder / name
        program.write_text(RECORDER)
        program.chmod(0o755)
    lines = text.replace("\\\n", " ").splitlines()
    script = "\n".join(line for line in lines if "python -m jobs." in line)
    record = folder / "record"
    record.touch()
    subprocess.run(
        ["/bin/bash", "-euc", script], env={"PATH": str(folder), "RECORD": str(record)}, cwd=folder, check=True
    )
    return [argv[argv.index("-m") + 1 :] for argv in _recorded(record.read_text())]


def _recorded(text: str) -> Iterator[list[str]]:
    words = iter(text.split("\0")[:-1])
    for count in words:
        yield [next(words) for _ in range(int(count))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
