"""`_hfray/report.html`: one self-contained page about an output folder and all its runs.

The page is made from the records of the runs and from the Parquet files. Prompts, answers and errors are untrusted
text: the templates escape all of it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from hfray.config.secrets import is_secret_name
from hfray.data.output import OutputFolder
from hfray.runs.about import About, read_about
from hfray.runs.answers import read_answers
from hfray.runs.contents import Contents, read_contents
from hfray.runs.history import Run, course, load_runs, pools, stage_seconds, tail_seconds, workers
from hfray.runs.summary import RunState
from hfray.runs.words import cut, duration, moment, precision_words, rate, size

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "report.html"
SAMPLES = 200
TEXTS = ("prompt", "generated_text", "error")
SAMPLE_BYTES = 1_500_000  # of all sampled rows on the page
ERRORS_SHOWN = 20


def try_report(output: OutputFolder) -> str | None:
    """Write the page; returns its path, or None. A failure here is printed, and does not change the run's exit code."""
    try:
        return write_report(output)
    except Exception as error:
        print(f"hfray: cannot write the report: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None


def write_report(output: OutputFolder) -> str:
    """Write `_hfray/report.html` from the records and files of the folder; returns its path."""
    output.write_text(PAGE, report_page(output))
    return f"{output.path.rstrip('/')}/_hfray/{PAGE}"


def report_page(output: OutputFolder) -> str:
    """The page as HTML."""
    contents = read_contents(output, SAMPLES)
    runs = load_runs(output, contents.rows_by_run, contents.tokens_by_run, contents.failed_by_run)
    about = read_about(output) or About()
    newest = runs[-1].record.summary if runs else None
    return render(
        "report.html",
        title=Path(output.path).name or output.path,
        path=output.path,
        contents=contents,
        runs=runs,
        total_rows=newest.rows if newest else contents.rows,
        state=runs[-1].state if runs else RunState.FINISHED,
        message=newest.message if newest else "",
        model=dict(flat(about.settings)).get("model.source", ""),
        figures=headline(contents, runs, about.settings),
        charts=charts(contents, runs),
        stages=stage_seconds(runs),
        tail=tail_seconds(runs),
        workers=workers(runs),
        pools=pools(runs),
        answers=read_answers(output),
        errors=contents.largest_errors(ERRORS_SHOWN),
        error_groups=len(contents.errors),
        samples=shorten(contents.samples),
        settings=flat(about.settings),
        versions=about.versions,
    )


def render(template: str, **values: object) -> str:
    """A template of this package with these values, all of them escaped."""
    return _environment().get_template(template).render(now=datetime.now(UTC).timestamp(), **values)


@functools.cache
def _environment() -> Environment:
    """It keeps the compiled templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "moment": moment, "bytes": size, "rate": rate}
    environment.filters["precision"] = precision_words
    return environment


# --- figures ---------------------------------------------------------------------------------------------------


def headline(contents: Contents, runs: list[Run], settings: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """The cards at the top of the page: (figure, what it counts, a remark)."""
    busy = sum(run.generating_seconds for run in runs)
    counted = [run for run in runs if run.generating_seconds]  # rows of a run without a record have no time
    rows, tokens = sum(run.rows for run in counted), sum(run.tokens for run in counted)
    total = runs[-1].record.summary.rows if runs else contents.rows
    missing = total - contents.rows
    share = f"{contents.failed / contents.rows:.2%} of the rows" if contents.rows else ""
    figures = [
        (
            f"{contents.rows:,}",
            "rows written",
            f"{missing:,} of {total:,} missing" if missing > 0 else "all of the input",
        ),
        (f"{contents.failed:,}", "rows failed", share),
        (f"{contents.generated_tokens.total:,}", "tokens generated", f"{contents.generated_tokens.mean:,.0f} a row"),
        (f"{contents.prompt_tokens.total:,}", "prompt tokens", f"{contents.prompt_tokens.mean:,.0f} a row"),
    ]
    if busy:
        figures += [(rate(tokens / busy), "generated tokens/s", "while generating")]
        figures += [(rate(rows / busy), "rows/s", "while generating")]
    if runs:
        took = sum(run.seconds for run in runs)
        several = f", {len(runs)} runs" if len(runs) > 1 else ""
        figures += [(duration(took), "time", f"{duration(busy)} of it generating{several}")]
    cost = settings.get("cost")
    price = cost.get("per_worker_hour") if isinstance(cost, dict) else None
    if price:
        hours = sum(run.seconds * max(1, len(run.record.snapshot.per_worker)) for run in runs) / 3600
        figures += [(f"{price * hours:,.2f}", "cost", f"{hours:,.2f} worker hours at {price:g}")]
    return figures


# --- charts ----------------------------------------------------------------------------------------------------


def charts(contents: Contents, runs: list[Run]) -> dict[str, Markup]:
    """Name to SVG; a chart without data is left out."""
    from hfray.runs.charts import histogram, line_chart

    found = {}
    for name, lengths in (("prompts", contents.prompt_tokens), ("answers", contents.generated_tokens)):
        if lengths.number:
            found[name] = histogram({name: lengths.histogram()}, f"Tokens of {name}", "tokens")
    over = course(runs)
    times, breaks = over.times, over.breaks
    if len(times) > 1:
        for kind, name, everything in ((1, "generated", over.generated_tokens), (0, "prompt", over.prompt_tokens)):
            pools = {pool: columns[kind] for pool, columns in over.pools.items()}
            label = f"{name.capitalize()} tokens per second over time"
            found[name] = line_chart(times, top_series(pools) or {name: everything}, label, "tokens/s", breaks)
        found["rows"] = line_chart(times, {"rows": over.rows}, "Rows per second over time", "rows/s", breaks)
        share = {"occupancy": over.occupancy}
        found["occupancy"] = line_chart(times, share, "Occupancy of the engines over time", "percent", breaks, top=102)
        ready = {"workers": over.workers_ready}
        found["workers"] = line_chart(times, ready, "Workers ready over time", "workers", breaks, whole=True)
    return found


def top_series(series: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """The series with the largest sums, as many as a chart has colours; the rest is summed up as "others"."""
    from hfray.runs.charts import SERIES

    order = sorted(series, key=lambda name: -sum(series[name]))
    room = len(SERIES) - (len(order) > len(SERIES))
    shown = {name: series[name] for name in order[:room]}
    rest = [series[name] for name in order[room:]]
    if rest:
        shown["others"] = [sum(values, 0.0) for values in zip(*rest, strict=True)]
    return shown


# --- words -----------------------------------------------------------------------------------------------------


def shorten(samples: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows for the page: long texts are cut, and rows are left out so that the page stays small."""
    kept, left = [], SAMPLE_BYTES
    for sample in samples:
        row = sample | {name: cut(str(sample[name])) for name in TEXTS if sample[name] is not None}
        left -= sum(6 * len(str(row[name] or "")) for name in TEXTS) // 3 + 600
        if left < 0:
            break
        kept.append(row)
    return kept


def flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, value) of nested settings; the values of secrets are hidden."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):  # pools
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict) and value:
            found += flat(value, f"{key}.")
        else:
            found.append((key, "•••" if value and is_secret_name(name) else _plain(value)))
    return found


def _plain(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)
