"""What the checks find: rows of a table, with goals, and a JSON file."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Finding:
    """One row of the table.

    Attributes:
        ok: whether the goal is met; None: a figure without a goal, or not measured.
    """

    section: str
    name: str
    value: Any
    unit: str = ""
    goal: str = ""
    ok: bool | None = None


@dataclass
class Report:
    """The findings of a run that ends after `seconds`: later measurements are left out, and the table says so."""

    seconds: float
    findings: list[Finding] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    took: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.seconds - (time.monotonic() - self.started)

    def add(self, section: str, name: str, value: Any, unit: str = "", goal: str = "", ok: bool | None = None) -> None:
        """Record and print a finding."""
        finding = Finding(section, name, value, unit, goal, ok)
        self.findings.append(finding)
        print("  ", _line(finding), flush=True)

    def run(self, section: str, check: Callable[[], None], needs: float = 0.0) -> None:
        """Run a part; its exception becomes a failed finding, so that the other parts still run.

        Args:
            needs: seconds that it takes; with less time left it does not run.
        """
        if self.left < needs:
            self.add(section, "not run", f"{max(0, self.left):.0f} s left, {needs:.0f} s needed")
            return
        print(f"[{time.monotonic() - self.started:5.0f} s] {section}", flush=True)
        start = time.monotonic()
        try:
            check()
        except Exception as error:
            traceback.print_exc()
            message = str(error).strip()
            self.add(
                section,
                "error",
                f"{type(error).__name__}: {message.splitlines()[0][:200] if message else ''}",
                ok=False,
            )
        self.took[section] = round(time.monotonic() - start, 1)

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.ok is False]

    def write(self, path: Path) -> None:
        """Write all findings as JSON."""
        seconds = round(time.monotonic() - self.started, 1)
        content = {"seconds": seconds, "sections": self.took, "findings": [asdict(f) for f in self.findings]}
        path.write_text(json.dumps(content, indent=1, default=str) + "\n")

    def table(self) -> str:
        """The findings as a Markdown table."""
        lines = ["| part | what | value | goal | |", "| --- | --- | --- | --- | --- |"]
        for f in self.findings:
            mark = {True: "ok", False: "FAILED", None: ""}[f.ok]
            lines.append(f"| {f.section} | {f.name} | {_value(f)} | {f.goal} | {mark} |")
        return "\n".join(lines)


def _value(finding: Finding) -> str:
    value = finding.value
    text = f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else value
    text = (
        f"{value:,.0f}"
        if isinstance(value, float | int) and not isinstance(value, bool) and abs(value) >= 1000
        else text
    )
    return f"{text} {finding.unit}".strip()


def _line(finding: Finding) -> str:
    mark = {True: "ok", False: "FAILED", None: ""}[finding.ok]
    goal = f" (goal: {finding.goal})" if finding.goal else ""
    return f"{finding.section}: {finding.name}: {_value(finding)}{goal} {mark}".rstrip()
