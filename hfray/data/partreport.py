"""Counts and samples of the rows in an output file, which the file's writer reports to the run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import pyarrow as pa
from pyarrow.compute import call_function

SAMPLES_PER_PART = 5
ERRORS_KEPT = 20
Column: TypeAlias = pa.Array | pa.ChunkedArray


@dataclass(slots=True)
class PartReport:
    """Counts and samples of the rows in one output file."""

    rows: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, object]] = field(default_factory=list)
    responses: Counter[str] = field(default_factory=Counter)  # valid, invalid, retried; empty if answers need no form

    @classmethod
    def of(cls, table: pa.Table) -> PartReport:
        """Count the rows of an output table."""
        report = cls(rows=table.num_rows)
        report.prompt_tokens = _total(table["num_prompt_tokens"])
        report.generated_tokens = _total(table["num_generated_tokens"])
        report.finish_reasons.update(
            {v["values"]: v["counts"] for v in table["finish_reason"].value_counts().to_pylist()}
        )
        good = table["error"].is_null()
        bad = table["error"].drop_null()
        report.failed = len(bad)
        report.errors.update({v["values"]: v["counts"] for v in bad.value_counts().to_pylist()[:1000]})
        if "num_attempts" in table.column_names:
            report.responses.update(count_responses(table["num_attempts"], good))
        columns = ["row_id", "prompt", "generated_text", "finish_reason"]
        report.samples = table.select(columns).filter(good).slice(0, SAMPLES_PER_PART).to_pylist()
        return report

    def to_json(self) -> dict[str, object]:
        """The report as plain values, with the most frequent errors only."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["finish_reasons"] = dict(self.finish_reasons)
        plain["errors"] = dict(self.errors.most_common(ERRORS_KEPT))
        plain["responses"] = dict(self.responses)
        if not self.responses:
            del plain["responses"]
        return plain

    def add(self, other: PartReport) -> None:
        """Add the counts of another file."""
        self.rows += other.rows
        self.failed += other.failed
        self.prompt_tokens += other.prompt_tokens
        self.generated_tokens += other.generated_tokens
        self.finish_reasons.update(other.finish_reasons)
        self.errors.update(other.errors)
        self.responses.update(other.responses)
        self.samples = (self.samples + other.samples)[:SAMPLES_PER_PART]


def count_responses(attempts: Column, good: Column) -> dict[str, int]:
    """Answers that fit their form, those that never did, and those that needed more than one try."""
    tried, retried = attempts.is_valid(), call_function("greater", [attempts, 1])
    valid = _count(call_function("and", [tried, good]))
    return {"valid": valid, "invalid": _count(tried) - valid, "retried": _count(retried)}


def _count(flags: Column) -> int:
    return call_function("sum", [flags]).as_py() or 0


def _total(column: pa.ChunkedArray) -> int:
    return int(column.drop_null().to_numpy().sum())
