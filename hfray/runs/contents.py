"""The rows of an output folder, read from its Parquet files: counts, lengths, errors and a few rows to read.

One pass over the small columns of every file covers all runs of a folder, killed runs too. Prompts and answers are
read only for samples and examples. Memory is bounded, however many rows there are.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from hfray.data.output import OutputFolder
from hfray.data.parts import open_part

BATCH_ROWS = 1 << 16
SMALL_COLUMNS = ["row_id", "finish_reason", "num_prompt_tokens", "num_generated_tokens", "error"]
TEXT_COLUMNS = ["row_id", "prompt", "generated_text", "finish_reason", "error"]
TEXT_COLUMNS += ["num_prompt_tokens", "num_generated_tokens"]
MAX_ERROR_GROUPS = 1000  # kept while reading; a report shows the largest
EXAMPLES = 20  # groups of errors that get their example's prompt
SAMPLED_ROWS_READ = 200_000  # rows of text read at most to draw a sample from
SAMPLED_GROUPS = 64


class Lengths:
    """An exact distribution of whole numbers: how often each number occurs."""

    def __init__(self) -> None:
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count these values; none is negative."""
        counts = np.bincount(values)
        if len(counts) > len(self.counts):
            counts[: len(self.counts)] += self.counts
            self.counts = counts.astype(np.int64)
        else:
            self.counts[: len(counts)] += counts

    @property
    def number(self) -> int:
        return int(self.counts.sum())

    @property
    def total(self) -> int:
        return int(self.counts @ np.arange(len(self.counts)))

    @property
    def mean(self) -> float:
        return self.total / self.number if self.number else 0.0

    @property
    def longest(self) -> int:
        return max(0, len(self.counts) - 1)

    def quantile(self, share: float) -> int:
        """The smallest value v such that at least `share` of all values are at most v."""
        return int(np.searchsorted(np.cumsum(self.counts), share * self.number)) if self.number else 0

    def histogram(self, bins: int = 40) -> tuple[np.ndarray, np.ndarray]:
        """(counts, edges) of at most `bins` bins of equal, whole width, from the smallest to the largest value."""
        if not self.number:
            return np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
        first = int(np.flatnonzero(self.counts)[0])
        width = -(-(self.longest + 1 - first) // bins)
        edges = np.arange(first, self.longest + 1 + width, width)
        return np.add.reduceat(self.counts, edges[:-1]), edges


@dataclass(slots=True)
class ErrorGroup:
    """Errors that differ only in numbers and quoted names, and the first row with such an error."""

    count: int = 0
    message: str = ""
    part: str = ""
    row: int = 0
    row_id: str = ""
    prompt: str | None = None


@dataclass(slots=True)
class Contents:
    """The counts of a folder. `prompt_tokens` covers all tokenized prompts, `generated_tokens` the rows without error."""

    rows: int = 0
    failed: int = 0
    bytes: int = 0
    parts: int = 0
    prompt_tokens: Lengths = field(default_factory=Lengths)
    generated_tokens: Lengths = field(default_factory=Lengths)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    rows_by_run: Counter[str] = field(default_factory=Counter)
    tokens_by_run: Counter[str] = field(default_factory=Counter)
    failed_by_run: Counter[str] = field(default_factory=Counter)
    errors: dict[str, ErrorGroup] = field(default_factory=dict)
    samples: list[dict[str, object]] = field(default_factory=list)

    def largest_errors(self, number: int) -> list[ErrorGroup]:
        """The error groups with the most rows."""
        return sorted(self.errors.values(), key=lambda group: -group.count)[:number]


def read_contents(output: OutputFolder, samples: int = 200) -> Contents:
    """Count the rows of a folder and draw `samples` of them at random; every call draws the same rows."""
    contents, filesystem = Contents(), output.filesystem
    groups: list[tuple[str, int, int]] = []
    for part in output.parts():
        contents.parts += 1
        contents.bytes += filesystem.get_file_info(part).size or 0
        with open_part(output, part, SMALL_COLUMNS) as parquet:
            groups += [(part, g, parquet.metadata.row_group(g).num_rows) for g in range(parquet.num_row_groups)]
            first = 0
            for batch in parquet.iter_batches(BATCH_ROWS, columns=SMALL_COLUMNS):
                _count(contents, batch, part, first)
                first += batch.num_rows
    for group in contents.largest_errors(EXAMPLES):
        group.prompt = _prompt_of(filesystem, group)
    contents.samples = list(_draw(filesystem, groups, samples))
    return contents


def run_of(part: str) -> str:
    """The id of the run that wrote an output file, from the file's name."""
    found = re.fullmatch(r"part-(\w+)-\d+\.parquet", posixpath.basename(part))
    return found.group(1) if found else ""


def count_rows(output: OutputFolder, key: str = "output.path") -> Counter[str]:
    """Rows in the finished files by run, from the files' footers alone.

    Raises:
        SettingsError: a file cannot be read; `key` is the setting that names the folder.
    """
    counts: Counter[str] = Counter()
    for part in output.parts():
        with open_part(output, part, key=key) as parquet:
            counts[run_of(part)] += parquet.metadata.num_rows
    return counts


def group_name(error: str) -> str:
    """The name of an error's group: the message without its numbers and quoted names."""
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", error))[:300]


def _count(contents: Contents, batch: pa.RecordBatch, part: str, first: int) -> None:
    run, good = run_of(part), batch["error"].is_null()
    contents.rows += batch.num_rows
    contents.rows_by_run[run] += batch.num_rows
    prompts = batch["num_prompt_tokens"].to_numpy(zero_copy_only=False)
    generated = batch["num_generated_tokens"].filter(good).to_numpy(zero_copy_only=False)
    contents.prompt_tokens.add(prompts[prompts > 0])
    contents.generated_tokens.add(generated)
    contents.tokens_by_run[run] += int(generated.sum())
    reasons = batch["finish_reason"].value_counts().to_pylist()
    contents.finish_reasons.update({entry["values"]: entry["counts"] for entry in reasons})
    failed = batch.num_rows - len(generated)
    contents.failed += failed
    contents.failed_by_run[run] += failed
    if failed:
        _group_errors(contents, batch, part, first, good)


def _group_errors(contents: Contents, batch: pa.RecordBatch, part: str, first: int, good: pa.Array) -> None:
    rows = np.flatnonzero(~good.to_numpy(zero_copy_only=False))
    for row, error in zip(rows.tolist(), batch["error"].take(pa.array(rows)).to_pylist(), strict=True):
        name = group_name(error)
        group = contents.errors.get(name)
        if group is None:
            if len(contents.errors) >= MAX_ERROR_GROUPS:
                name, error = "", "other errors"
            group = contents.errors.setdefault(
                name, ErrorGroup(0, error, part, first + row, batch["row_id"][row].as_py())
            )
        group.count += 1


def _prompt_of(filesystem: fs.FileSystem, group: ErrorGroup) -> str | None:
    with filesystem.open_input_file(group.part) as file:
        left = group.row
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=["prompt"]):
            if left < batch.num_rows:
                return batch["prompt"][left].as_py()
            left -= batch.num_rows
    return None


def _draw(filesystem: fs.FileSystem, groups: list[tuple[str, int, int]], wanted: int) -> Iterator[dict[str, object]]:
    """Random rows from random row groups. Reads the text of at most SAMPLED_ROWS_READ rows and one row group more."""
    generator = np.random.default_rng(0)
    chosen, read = [], 0
    for number in generator.permutation(len(groups))[:SAMPLED_GROUPS]:
        chosen.append(number)
        read += groups[number][2]
        if read >= SAMPLED_ROWS_READ:
            break
    picks = np.sort(generator.choice(read, size=min(wanted, read), replace=False))
    start = 0
    for number in chosen:
        part, group, rows = groups[number]
        mine = picks[(picks >= start) & (picks < start + rows)] - start
        start += rows
        if len(mine):
            yield from _take(filesystem, part, group, mine)


def _take(filesystem: fs.FileSystem, part: str, group: int, rows: np.ndarray) -> Iterator[dict[str, object]]:
    first = 0
    with filesystem.open_input_file(part) as file:
        for batch in pq.ParquetFile(file).iter_batches(8192, row_groups=[group], columns=TEXT_COLUMNS):
            here = rows[(rows >= first) & (rows < first + batch.num_rows)] - first
            yield from batch.take(pa.array(here)).to_pylist()
            first += batch.num_rows
            if first > rows[-1]:
                return
