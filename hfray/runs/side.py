"""One side of a comparison: the rows of an output folder as hashes, and its runs.

Ids and texts are kept as 128-bit hashes in numpy: 40 bytes a row, however long the texts are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from hfray.data.done_rows import HASH, hash_ids
from hfray.data.output import OutputFolder
from hfray.data.parts import open_part
from hfray.errors import SettingsError
from hfray.runs.about import About, read_about
from hfray.runs.contents import BATCH_ROWS, Lengths, count_rows, run_of
from hfray.runs.history import Run, load_runs

COLUMNS = ["row_id", "generated_text", "finish_reason", "num_generated_tokens", "error"]


@dataclass(slots=True)
class Answers:
    """The rows of a folder without their texts, sorted by the hash of their ids; four arrays of equal length."""

    ids: np.ndarray
    texts: np.ndarray
    tokens: np.ndarray
    failed: np.ndarray


@dataclass(slots=True)
class Text:
    """The prompt and the answer of one row."""

    prompt: str
    answer: str
    row_id: str


@dataclass(slots=True)
class Side:
    """One of the two folders; `about` describes how its rows were made."""

    path: str
    answers: Answers
    runs: list[Run]
    about: About
    lengths: Lengths = field(default_factory=Lengths)
    finish_reasons: Counter[str] = field(default_factory=Counter)

    @property
    def speed(self) -> tuple[float, float] | None:
        """Rows and generated tokens per second of generating; None if the folder has no record of a run."""
        counted = [run for run in self.runs if run.generating_seconds and run.rows]
        seconds = sum(run.generating_seconds for run in counted)
        rows, tokens = sum(run.rows for run in counted), sum(run.tokens for run in counted)
        return (rows / seconds, tokens / seconds) if seconds else None


def read_side(path: str, key: str) -> Side:
    """Read the folder `path`, which the setting `key` names.

    Raises:
        SettingsError: the folder is not an hfray output folder, or cannot be read.
    """
    output = OutputFolder(path)
    try:
        rows = count_rows(output, key)
    except OSError as error:
        raise SettingsError(f"{key}={path}: cannot be read ({error}). Check the path.") from error
    if not rows:
        raise SettingsError(
            f"{key}={path}: is not an hfray output folder. Name a folder that a job got as output.path."
        )
    lengths, reasons = Lengths(), Counter()
    pieces, generated, failures = [], Counter(), Counter()
    for run, batch in _batches(output, COLUMNS, key):
        failed = ~batch["error"].is_null().to_numpy(zero_copy_only=False)
        tokens = batch["num_generated_tokens"].to_numpy(zero_copy_only=False)
        texts = hash_ids([text or "" for text in batch["generated_text"].to_pylist()])
        pieces.append(Answers(hash_ids(batch["row_id"].to_pylist()), texts, tokens, failed))
        lengths.add(tokens[~failed])
        reasons.update(
            {entry["values"]: entry["counts"] for entry in batch["finish_reason"].value_counts().to_pylist()}
        )
        generated[run] += int(tokens[~failed].sum())
        failures[run] += int(failed.sum())
    runs = load_runs(output, rows, generated, failures, key)
    return Side(path, _joined(pieces), runs, read_about(output, key) or About(), lengths, reasons)


def read_texts(path: str, key: str, chosen: np.ndarray) -> dict[tuple[int, int], Text]:
    """The texts of the rows with these id hashes, by hash. `chosen` is sorted."""
    found = {}
    for _, batch in _batches(OutputFolder(path), ["row_id", "prompt", "generated_text"], key):
        hashes = hash_ids(batch["row_id"].to_pylist())
        at = np.searchsorted(chosen, hashes).clip(max=len(chosen) - 1)
        rows = np.flatnonzero(chosen[at] == hashes)
        for i, row in zip(rows, batch.take(pa.array(rows)).to_pylist(), strict=True):
            found[hashes[i].item()] = Text(row["prompt"] or "", row["generated_text"] or "", row["row_id"])
    return found


def _joined(pieces: list[Answers]) -> Answers:
    if not pieces:
        return Answers(np.zeros(0, HASH), np.zeros(0, HASH), np.zeros(0, np.int32), np.zeros(0, bool))
    whole = [np.concatenate([getattr(p, name) for p in pieces]) for name in ("ids", "texts", "tokens", "failed")]
    order = np.argsort(whole[0], kind="stable")
    return Answers(*(column[order] for column in whole))


def _batches(output: OutputFolder, columns: list[str], key: str) -> Iterator[tuple[str, pa.RecordBatch]]:
    for part in output.parts():
        with open_part(output, part, columns, key) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=columns):
                yield run_of(part), batch
