"""What a command prints at its end: the summary of a run, or a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

from hfray.runs.summary import EngineReport, Summary
from hfray.runs.words import coarse, duration, pool_words, precision_words
from hfray.tools.plan import WORKERS, Plan

SNIPPET = 160  # characters of a prompt or an answer


def print_summary(summary: Summary, file: TextIO) -> None:
    """Print the summary of a run."""
    console = _console(file)
    written = summary.written
    if summary.message:
        console.print(summary.message)
    if written.rows:
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in _lines(summary):
            table.add_row(name, value)
        console.print(table)
        _print_examples(console, [(sample["prompt"], sample["generated_text"]) for sample in written.samples[:3]])
    console.print(f"output: {summary.output}")
    console.print(f"report: {summary.output.rstrip('/')}/_hfray/report.html")


def _console(file: TextIO) -> Console:
    """A console that prints texts of rows literally: `[/INST]` is no markup, and `:smile:` is no emoji."""
    return Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_plan(plan: Plan, file: TextIO) -> None:
    """Print a plan: the prompts, what one worker made of a sample, and estimates."""
    console = _console(file)
    trial = plan.trial
    if not trial.sampled:
        console.print(f"rows: {plan.rows:,}, and all of them are done; there is nothing to run")
        return
    if trial.examples:
        _print_examples(console, [(prompt, text) for prompt, text, _ in trial.examples])
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _plan_lines(plan):
        table.add_row(name, value)
    console.print(table)
    _print_estimates(console, plan)
    console.print("This was a plan: nothing was written. Run the command without plan=true to start the run.")


def _plan_lines(plan: Plan) -> list[tuple[str, str]]:
    trial, prompts = plan.trial, plan.trial.prompts
    rows = f"{plan.rows:,}" + (f", {plan.done:,} of them done; {plan.pending:,} to do" if plan.done else "")
    share = trial.too_long / trial.sampled
    context = f"{trial.context_length:,} tokens" if trial.context_length else "unlimited"
    lengths = (
        f"median {prompts.quantile(0.5):,}, 95th percentile {prompts.quantile(0.95):,}, longest {prompts.longest:,}"
    )
    counted = "all rows" if trial.sampled == plan.pending else f"{trial.sampled:,} rows at random"
    lines = [
        ("rows", rows),
        ("prompt tokens", f"{lengths} (of {counted})"),
        ("", f"about {round(prompts.mean * plan.pending):,} in all"),
        ("too long", f"{trial.too_long:,} of {trial.sampled:,} ({share:.1%}); context: {context}"),
    ]
    failed = sum(trial.errors.values())
    if failed:
        kinds = "".join(f"\n{count:,} x {error[:200]}" for error, count in trial.errors.most_common(3))
        lines.append(("errors", f"{failed:,} of {trial.sampled:,} rows{kinds}"))
    pace = f"{trial.tokens_per_second:,.0f} generated tokens/s, {trial.rows_per_second:,.2f} rows/s"
    pace += f" in {trial.precision}" if trial.precision else ""
    answers = f"{trial.tokens_per_row:,.0f} tokens a row"
    if trial.engine:
        lines.append(("engine", trial.engine))
    lines += [
        ("one worker", f"{pace}, {answers}"),
        ("", f"{trial.finished} rows in {duration(trial.seconds)}, after {duration(trial.start_seconds)} to start"),
    ]
    return lines


def _print_estimates(console: Console, plan: Plan) -> None:
    if plan.estimate(1) is None:
        console.print("No row was finished, so there is no estimate.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("workers", "time", *(["cost"] if plan.price is not None else [])):
        table.add_column(heading, justify="right")
    for workers in WORKERS:
        seconds, cost = plan.estimate(workers), plan.cost(workers)
        if seconds is not None:
            table.add_row(str(workers), coarse(seconds), *([] if cost is None else [_price(cost)]))
    console.print(table)
    if plan.trial.too_long or plan.trial.errors:
        console.print("Failing rows take almost no time; the estimate counts them like other rows.", style="dim")
    console.print(
        "The estimate assumes that each worker has as much of a machine as the worker tried here.", style="dim"
    )


def _price(cost: float) -> str:
    return f"{cost:,.2f}" if cost >= 0.1 else f"{cost:.2g}"


def _print_examples(console: Console, examples: Sequence[tuple[object, object]]) -> None:
    for prompt, text in examples:
        console.rule(style="dim")
        console.print(_snippet(prompt), style="dim")
        console.print(_snippet(text))
    console.rule(style="dim")


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
    if written.responses:
        counts = (f"{written.responses[name]:,} {name}" for name in ("valid", "invalid", "retried"))
        lines.append(("answers", ", ".join(counts)))
    return lines + (_engine_lines(summary.engine) if summary.engine else [])


def _engine_lines(engine: EngineReport) -> list[tuple[str, str]]:
    lines, saved = [], engine.saved_tokens
    if engine.precisions:
        lines.append(("precision", precision_words(engine.precisions)))
    if saved.generated or saved.prompts or saved.prefixes:
        equal = engine.rows_of_equal_prompts
        words = f"{saved.generated:,} of {equal:,} rows with equal prompts, " if equal else ""
        lines.append(("saved", f"{words}{saved.prompts + saved.prefixes:,} tokens of prompts"))
    if engine.tail_seconds is not None and engine.share_of_full_steps is not None:  # the engine was full once
        share = f"{engine.share_of_full_steps:.0%} of the steps at least 80 % full"
        lines.append(("engine", f"{share}, then a tail of {duration(engine.tail_seconds)}"))
    for number, (name, pool) in enumerate(engine.pools.items()):
        lines.append(("" if number else "pools", f"{name}: {pool_words(pool)}"))
    if engine.workers_replaced:
        lines.append(("workers", f"{engine.workers_replaced} replaced"))
    return lines


def _snippet(text: object) -> str:
    flat = " ".join(str(text or "").split())
    return flat if len(flat) <= SNIPPET else flat[: SNIPPET - 1] + "…"
