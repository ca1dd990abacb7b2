"""`_hfray/report.html`: one self-contained page about an output folder, whatever number of runs it took to fill it.

Built from the records of the runs and from the Parquet files themselves. Prompts, answers and errors are text that
nobody vouches for: the templates escape all of it.
"""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hfray.contents import Contents, read_contents
from hfray.outputs import OutputFolder
from hfray.progress import duration, occupancy
from hfray.runs import SAMPLE_FIELDS, STOPPED, read_runs

PAGE = "report.html"
SAMPLES = 200
SAMPLE_BYTES = 1_500_000  # of the page, for the sampled rows together
LONGEST_TEXT = 4000  # characters of a prompt or an answer
ERRORS_SHOWN = 20
WORKERS_SHOWN = 64
CHART_POINTS = 80
# A mark of the time line ends the stage that is named beside it.
STAGES = [
    ("checked", "looking over settings and input"),
    ("ray_ready", "starting Ray"),
    ("model_ready", "preparing the model"),
    ("worker_process", "starting workers"),
    ("engine_ready", "loading the engine"),
    ("first_row", "until the first answer"),
    ("end", "generating and writing"),
]
SECRET = re.compile(r"(^|[._])(api_?keys?|token|secret|password|credentials?)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the folder, for the page; `seconds` and rates are up to its end, or to its last sign of life."""

    run_id: str
    state: str
    started: float
    seconds: float
    generating_seconds: float
    rows: int
    failed: int
    tokens: int
    message: str
    record: dict[str, Any]


def try_report(output: OutputFolder) -> str | None:
    """Write the page; a page that cannot be made costs no run its exit code. Returns its path, or None."""
    try:
        return write_report(output)
    except Exception as error:
        print(f"hfray: no report: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None


def write_report(output: OutputFolder) -> str:
    """Write `_hfray/report.html` from what the folder holds; returns its path."""
    output.write_text(PAGE, report_page(output))
    return f"{output.path.rstrip('/')}/_hfray/{PAGE}"


def report_page(output: OutputFolder) -> str:
    """The page as HTML."""
    contents = read_contents(output, SAMPLES)
    runs = [_run(record, contents) for record in read_runs(output)]
    about = output.read_json("run.json") or {}
    newest = runs[-1].record if runs else {}
    return render(
        "report.html",
        title=Path(output.path).name or output.path,
        path=output.path,
        contents=contents,
        runs=runs,
        total_rows=newest.get("rows", contents.rows),
        state=runs[-1].state if runs else "finished",
        message=newest.get("message", ""),
        model=about.get("settings", {}).get("model", {}).get("source", ""),
        figures=headline(contents, runs, about.get("settings", {})),
        charts=charts(contents, runs),
        stages=stage_seconds(runs),
        tail=tail_seconds(runs),
        workers=workers(runs),
        errors=contents.largest_errors(ERRORS_SHOWN),
        error_groups=len(contents.errors),
        samples=shorten(contents.samples),
        settings=flat(about.get("settings", {})),
        versions=about.get("versions", {}),
    )


def render(template: str, **values: Any) -> str:
    """A template of this package, with everything escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hfray"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "moment": _moment, "bytes": _bytes, "rate": _rate}
    return environment.get_template(template).render(now=datetime.now(UTC).timestamp(), **values)


# --- figures ---------------------------------------------------------------------------------------------------


def _run(record: dict[str, Any], contents: Contents) -> Run:
    timeline, run_id = record["timeline"], record["run_id"]
    end = timeline.get("end") or record["updated"]
    ready = timeline.get("engine_ready")
    message = record["message"]
    if record["state"] == STOPPED:
        message = f"ended without a word, at or after {_moment(record['updated'])}, while {record['stage']}"
    return Run(
        run_id=run_id,
        state=record["state"],
        started=record["started"],
        seconds=max(0.0, end - record["started"]),
        generating_seconds=max(0.0, end - ready) if ready else 0.0,
        rows=contents.rows_by_run[run_id],
        failed=contents.failed_by_run[run_id],
        tokens=contents.tokens_by_run[run_id],
        message=message,
        record=record,
    )


def headline(contents: Contents, runs: list[Run], settings: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, a remark) of what people look for first."""
    busy = sum(run.generating_seconds for run in runs)
    counted = [run for run in runs if run.generating_seconds]  # rows without a record of their run have no time
    rows, tokens = sum(run.rows for run in counted), sum(run.tokens for run in counted)
    total = runs[-1].record["rows"] if runs else contents.rows
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
        figures += [(_rate(tokens / busy), "generated tokens/s", "while generating")]
        figures += [(_rate(rows / busy), "rows/s", "while generating")]
    if runs:
        took = sum(run.seconds for run in runs)
        several = f", {len(runs)} runs" if len(runs) > 1 else ""
        figures += [(duration(took), "time", f"{duration(busy)} of it generating{several}")]
    price = (settings.get("cost") or {}).get("per_worker_hour")
    if price:
        hours = sum(run.seconds * max(1, len(run.record["workers"])) for run in runs) / 3600
        figures += [(f"{price * hours:,.2f}", "cost", f"{hours:,.2f} worker hours at {price:g}")]
    return figures


def stage_seconds(runs: list[Run]) -> list[tuple[str, float]]:
    """(stage, seconds) over all runs; the stage that a run was killed in lasts until its last sign of life."""
    seconds = dict.fromkeys((name for _, name in STAGES), 0.0)
    for run in runs:
        timeline, then = run.record["timeline"], run.started
        last = run.started + run.seconds
        for mark, name in STAGES:
            at = timeline.get(mark)
            if at is None and mark != "end" and any(timeline.get(later) for later, _ in STAGES[_at(mark) + 1 : -1]):
                continue  # passed over: nothing to load, nothing to start
            seconds[name] += max(0.0, (last if at is None else at) - then)
            then = max(then, at or last)
            if at is None:
                break
    return [(name, spent) for name, spent in seconds.items() if spent >= 0.05]


def _at(mark: str) -> int:
    return next(i for i, (name, _) in enumerate(STAGES) if name == mark)


def tail_seconds(runs: list[Run]) -> tuple[float, float] | None:
    """(seconds, share of the generating time) at the ends of finished runs with the engines less than half full."""
    tails = busy = 0.0
    for run in runs:
        points = run.record["samples"]["points"]
        capacity, running, moment = (SAMPLE_FIELDS.index(name) for name in ("capacity", "running", "time"))
        full = [p[moment] for p in points if p[capacity] and p[running] >= p[capacity] / 2]
        if run.state == "finished" and full:
            tails += max(0.0, run.started + run.seconds - full[-1])
            busy += run.generating_seconds
    return (tails, min(1.0, tails / busy)) if busy else None


def workers(runs: list[Run]) -> list[dict[str, Any]]:
    """What each worker did, busiest first, over all runs."""
    rows = [
        {"name": name[:8], "run": run.run_id, "pool": "", "start_seconds": 0.0, **worker}
        for run in runs
        for name, worker in run.record["workers"].items()
    ]
    return sorted(rows, key=lambda worker: -worker["rows"])


# --- charts ----------------------------------------------------------------------------------------------------


def charts(contents: Contents, runs: list[Run]) -> dict[str, Any]:
    """Name to SVG; a chart that there is nothing for is left out."""
    from hfray.charts import histogram, line_chart

    found = {}
    for name, lengths in (("prompts", contents.prompt_tokens), ("answers", contents.generated_tokens)):
        if lengths.number:
            found[name] = histogram({name: lengths.histogram()}, f"Tokens of {name}", "tokens")
    times, values, breaks = course(runs)
    if len(times) > 1:
        pace = {"generated": values["generated_tokens"], "prompts": values["prompt_tokens"]}
        found["tokens"] = line_chart(times, pace, "Tokens per second over time", "tokens/s", breaks)
        found["rows"] = line_chart(times, {"rows": values["rows"]}, "Rows per second over time", "rows/s", breaks)
        share = {"occupancy": values["occupancy"]}
        found["occupancy"] = line_chart(times, share, "Occupancy of the engines over time", "percent", breaks, top=102)
        ready = {"workers": values["workers_ready"]}
        found["workers"] = line_chart(times, ready, "Workers ready over time", "workers", breaks, whole=True)
    return found


def course(runs: list[Run]) -> tuple[list[float], dict[str, list[float]], list[float]]:
    """(seconds, values by name, breaks): rates and occupancy of all runs, one after the other, without the pauses."""
    columns = {name: i for i, name in enumerate(SAMPLE_FIELDS)}
    sampled = [run.record["samples"]["points"] for run in runs]
    total = sum(points[-1][0] - points[0][0] for points in sampled if points)
    times: list[float] = []
    values: dict[str, list[float]] = {
        name: [] for name in ("rows", "prompt_tokens", "generated_tokens", "occupancy", "workers_ready")
    }
    breaks, offset = [], 0.0
    for points in sampled:
        if len(points) < 2:
            continue
        if times:
            breaks.append(offset)
        kept = _spaced(points, max(total / CHART_POINTS, 1.0))
        for before, now in itertools.pairwise(kept):
            seconds = max(now[0] - before[0], 1e-3)
            times.append(offset + now[0] - points[0][0])
            for name in ("rows", "prompt_tokens", "generated_tokens"):  # a death takes unfinished rows back
                values[name].append(max(0.0, now[columns[name]] - before[columns[name]]) / seconds)
            values["occupancy"].append(100 * occupancy(now[columns["running"]], now[columns["capacity"]]))
            values["workers_ready"].append(now[columns["workers_ready"]])
        offset += points[-1][0] - points[0][0]
    return times, values, breaks


def _spaced(points: list[list[float]], seconds: float) -> list[list[float]]:
    """Points at least `seconds` apart, the last one among them: rates over shorter times are noise."""
    kept = [points[0]]
    for point in points[1:-1]:
        if point[0] - kept[-1][0] >= seconds:
            kept.append(point)
    if len(kept) > 1 and points[-1][0] - kept[-1][0] < seconds:
        kept.pop()
    return [*kept, points[-1]]


# --- words -----------------------------------------------------------------------------------------------------


def shorten(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a page: long texts cut, and so many that the page stays small."""
    kept, left = [], SAMPLE_BYTES
    for sample in samples:
        row = sample | {name: cut(sample[name]) for name in ("prompt", "generated_text", "error")}
        left -= sum(6 * len(row[name] or "") for name in ("prompt", "generated_text", "error")) // 3 + 600
        if left < 0:
            break
        kept.append(row)
    return kept


def cut(text: str | None, longest: int = LONGEST_TEXT) -> str | None:
    """A text with its middle left out where it is longer than a reader would read."""
    if text is None or len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, value) of nested settings; values of keys that hold secrets are not shown."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            found += flat(value, f"{key}.")
        else:
            found.append((key, "•••" if value and SECRET.search(key) else _plain(value)))
    return found


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def _moment(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"
