"""The end of a run, for people: what was done, how fast, what failed, where it is, and a few answers to read."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.table import Table

from hfray.batch import Summary
from hfray.progress import duration

SNIPPET = 160  # characters of a prompt or an answer


def print_summary(summary: Summary, file: TextIO) -> None:
    """Print the summary of a run."""
    console = Console(file=file, highlight=False, soft_wrap=True)
    written = summary.written
    if summary.message:
        console.print(summary.message, markup=False)
    if written.rows:
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in _lines(summary):
            table.add_row(name, value)
        console.print(table)
        for sample in written.samples[:3]:
            console.rule(style="dim")
            console.print(_snippet(sample["prompt"]), style="dim", markup=False)
            console.print(_snippet(sample["generated_text"]), markup=False)
        console.rule(style="dim")
    console.print(f"output: {summary.output}", markup=False)


def _lines(summary: Summary) -> list[tuple[str, str]]:
    written, seconds = summary.written, summary.generating_seconds or 1.0
    rows = f"{written.rows:,} written" + (
        f", {summary.rows_done_before:,} done before" if summary.rows_done_before else ""
    )
    lines = [
        ("rows", f"{rows}, of {summary.rows:,}"),
        ("tokens", f"{written.prompt_tokens:,} of prompts, {written.generated_tokens:,} generated"),
        (
            "rates",
            f"{written.rows / seconds:,.1f} rows/s, {written.generated_tokens / seconds:,.0f} generated tokens/s",
        ),
        ("time", f"{duration(summary.seconds)}, {duration(seconds)} of it generating"),
        ("finish", ", ".join(f"{count:,} {reason}" for reason, count in sorted(written.finish_reasons.items()))),
        ("failed", f"{written.failed:,}" + "".join(f"\n{n:,} x {e[:200]}" for e, n in written.errors.most_common(3))),
    ]
    if summary.engine.get("workers_replaced"):
        lines.append(("workers", f"{summary.engine['workers_replaced']} replaced"))
    return lines


def _snippet(text: str | None) -> str:
    flat = " ".join((text or "").split())
    return flat if len(flat) <= SNIPPET else flat[: SNIPPET - 1] + "…"
