"""Two output folders of one input, side by side: how many texts are equal, where the others part, lengths, speed.

Rows are joined on `row_id` by 128-bit hashes of ids and texts, in numpy: 40 bytes a row and folder, however long the
texts are. Texts themselves are read only for a random sample of the rows that differ.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup, escape
from pydantic import Field
from pydantic.dataclasses import dataclass

from hfray.config.engine import STRICT
from hfray.data.done_rows import HASH, hash_ids
from hfray.data.output import OutputFolder
from hfray.errors import SettingsError
from hfray.runs.contents import BATCH_ROWS, Lengths, count_rows, run_of
from hfray.runs.history import Run, load_runs
from hfray.runs.report import cut, flat, render

DIFFERING_READ = 20_000  # rows that differ, whose texts are read to see where they part
WORDS_COMPARED = 400  # of each text of a pair on the page; difflib's time grows with their product


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PageOutput:
    """Where the page goes."""

    path: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompareSettings:
    """What `jobs.compare` takes."""

    ROOT: ClassVar = "compare"

    first: str
    second: str
    output: PageOutput
    samples: int = Field(default=60, ge=0)


@plain_dataclass(slots=True)
class Answers:
    """A folder's rows without their texts, sorted by the hash of their ids."""

    ids: np.ndarray
    texts: np.ndarray
    tokens: np.ndarray
    failed: np.ndarray


@plain_dataclass(slots=True)
class Side:
    """One of the two folders."""

    path: str
    answers: Answers
    runs: list[Run]
    about: dict[str, Any]
    lengths: Lengths = field(default_factory=Lengths)
    finish_reasons: Counter = field(default_factory=Counter)

    @property
    def speed(self) -> tuple[float, float] | None:
        """Rows and generated tokens in a second of the time spent generating; None where no record tells."""
        counted = [run for run in self.runs if run.generating_seconds and run.rows]
        seconds = sum(run.generating_seconds for run in counted)
        rows, tokens = sum(run.rows for run in counted), sum(run.tokens for run in counted)
        return (rows / seconds, tokens / seconds) if seconds else None


@plain_dataclass(frozen=True, slots=True)
class Parting:
    """Where two texts first differ: characters and words that they begin with alike."""

    characters: int
    words: int


@plain_dataclass(slots=True)
class Comparison:
    """What two folders have in common; `same`, `differ` and the failures count rows that both have."""

    sides: tuple[Side, Side]
    common: int = 0
    same: int = 0
    differ: int = 0
    failed_first: int = 0
    failed_second: int = 0
    failed_both: int = 0
    only_first: int = 0
    only_second: int = 0
    longer_first: int = 0
    longer_second: int = 0
    partings: list[Parting] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Rows that both have an answer to."""
        return self.same + self.differ


def compare(settings: CompareSettings) -> Comparison:
    """Compare two output folders.

    Raises:
        SettingsError: one is none, or they have no row in common.
    """
    first, second = (_read_side(settings, name) for name in ("first", "second"))
    result = Comparison((first, second))
    a, b = first.answers, second.answers
    _, at_a, at_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    result.common = len(at_a)
    result.only_first, result.only_second = len(a.ids) - len(at_a), len(b.ids) - len(at_b)
    if not result.common:
        raise SettingsError(
            f"first={settings.first} and second={settings.second}: have no row_id in common. "
            "Compare two outputs of one input."
        )
    bad_a, bad_b = a.failed[at_a], b.failed[at_b]
    equal = a.texts[at_a] == b.texts[at_b]
    good = ~bad_a & ~bad_b
    result.same, result.differ = int((equal & good).sum()), int((~equal & good).sum())
    result.failed_both = int((bad_a & bad_b).sum())
    result.failed_first, result.failed_second = (
        int(bad_a.sum()) - result.failed_both,
        int(bad_b.sum()) - result.failed_both,
    )
    longer = a.tokens[at_a][good].astype(np.int64) - b.tokens[at_b][good]
    result.longer_first, result.longer_second = int((longer > 0).sum()), int((longer < 0).sum())
    differing = a.ids[at_a[~equal & good]]
    generator = np.random.default_rng(0)
    chosen = generator.permutation(differing)[:DIFFERING_READ]
    _look_closer(result, np.sort(chosen), chosen[: settings.samples])
    return result


def page(settings: CompareSettings, result: Comparison) -> str:
    """The comparison as one self-contained HTML page."""
    from hfray.runs.charts import histogram

    first, second = result.sides
    edges = _edges(first.lengths, second.lengths)
    bars = {name: (_binned(side.lengths, edges), edges) for name, side in (("first", first), ("second", second))}
    charts = {"lengths": histogram(bars, "Tokens of answers", "tokens")} if first.lengths.number else {}
    words = Lengths()
    if result.partings:
        words.add(np.array([parting.words for parting in result.partings]))
        charts["partings"] = histogram({"words": words.histogram()}, "Words before the texts part", "words")
    return render(
        "compare.html",
        result=result,
        first=first,
        second=second,
        charts=charts,
        words=words,
        characters=_lengths([parting.characters for parting in result.partings]),
        differences=differing_settings(first.about, second.about),
        path=settings.output.path,
    )


# --- reading ---------------------------------------------------------------------------------------------------


def _read_side(settings: CompareSettings, key: str) -> Side:
    path = getattr(settings, key)
    output = OutputFolder(path)
    try:
        rows = count_rows(output)
    except (OSError, pa.ArrowInvalid) as error:
        raise SettingsError(f"{key}={path}: cannot be read ({error}). Check the path.") from error
    if not rows:
        raise SettingsError(
            f"{key}={path}: holds no output of a job. Name the folder that it was given as output.path."
        )
    side = Side(path, Answers(*_empty()), [], output.read_json("run.json") or {})
    pieces, generated, failures = [], Counter(), Counter()
    columns = ["row_id", "generated_text", "finish_reason", "num_generated_tokens", "error"]
    for run, batch in _batches(output, columns):
        failed = ~batch["error"].is_null().to_numpy(zero_copy_only=False)
        tokens = batch["num_generated_tokens"].to_numpy(zero_copy_only=False)
        texts = hash_ids([text or "" for text in batch["generated_text"].to_pylist()])
        pieces.append(Answers(hash_ids(batch["row_id"].to_pylist()), texts, tokens, failed))
        side.lengths.add(tokens[~failed])
        reasons = batch["finish_reason"].value_counts().to_pylist()
        side.finish_reasons.update({entry["values"]: entry["counts"] for entry in reasons})
        generated[run] += int(tokens[~failed].sum())
        failures[run] += int(failed.sum())
    side.answers = _joined(pieces)
    side.runs = load_runs(output, rows, generated, failures)
    return side


def _empty() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(0, HASH), np.zeros(0, HASH), np.zeros(0, np.int32), np.zeros(0, bool)


def _joined(pieces: list[Answers]) -> Answers:
    whole = [np.concatenate([getattr(p, name) for p in pieces]) for name in ("ids", "texts", "tokens", "failed")]
    order = np.argsort(whole[0], kind="stable")
    return Answers(*(column[order] for column in whole))


def _batches(output: OutputFolder, columns: list[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    for part in output.parts():
        with output.filesystem.open_input_file(part) as file:
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns):
                yield run_of(part), batch


def _look_closer(result: Comparison, chosen: np.ndarray, shown: np.ndarray) -> None:
    """Read the texts of the chosen rows: where each pair parts, and the pairs that are shown."""
    if not len(chosen):
        return
    texts_a, texts_b = (_texts(OutputFolder(side.path), chosen) for side in result.sides)
    result.partings = [parting(texts_a[key][1], texts_b[key][1]) for key in texts_a.keys() & texts_b.keys()]
    for row_hash in shown:
        key = row_hash.item()
        if key in texts_a and key in texts_b:
            (prompt, one, row_id), (other_prompt, other, _) = texts_a[key], texts_b[key]
            marked = mark(cut(one) or "", cut(other) or "")
            where = parting(one, other)
            pair = {"row_id": row_id, "prompt": cut(prompt), "first": marked[0], "second": marked[1], "where": where}
            result.pairs.append(pair | {"other_prompt": cut(other_prompt) if other_prompt != prompt else None})


def _texts(output: OutputFolder, chosen: np.ndarray) -> dict[tuple[int, int], tuple[str, str, str]]:
    """(prompt, text, row id) by the id's hash."""
    found = {}
    for _, batch in _batches(output, ["row_id", "prompt", "generated_text"]):
        hashes = hash_ids(batch["row_id"].to_pylist())
        at = np.searchsorted(chosen, hashes).clip(max=len(chosen) - 1)
        rows = np.flatnonzero(chosen[at] == hashes)
        for i, row in zip(rows, batch.take(pa.array(rows)).to_pylist(), strict=True):
            found[hashes[i].item()] = (row["prompt"] or "", row["generated_text"] or "", row["row_id"])
    return found


# --- differences -----------------------------------------------------------------------------------------------


def parting(one: str, other: str) -> Parting:
    """Where two texts first differ; a text that only goes on parts at the other's end."""
    characters = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return Parting(characters, len(one[:characters].split()))


def mark(one: str, other: str) -> tuple[Markup, Markup]:
    """Both texts as HTML, with what only the first has in <del>, and what only the second has in <ins>."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (one, other))
    rest_a, rest_b = "".join(a[WORDS_COMPARED:]), "".join(b[WORDS_COMPARED:])
    first, second = Markup(), Markup()
    matcher = difflib.SequenceMatcher(None, a[:WORDS_COMPARED], b[:WORDS_COMPARED], autojunk=False)
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        mine, theirs = escape("".join(a[a0:a1])), escape("".join(b[b0:b1]))
        first += mine if kind == "equal" else Markup("<del>{}</del>").format(mine) if mine else ""
        second += theirs if kind == "equal" else Markup("<ins>{}</ins>").format(theirs) if theirs else ""
    return first + escape(rest_a), second + escape(rest_b)


def differing_settings(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key, first value, second value) of what decides the text and is not the same."""
    a, b = (dict(flat(about.get("fingerprint", {}))) for about in (first, second))
    return [(key, a.get(key, "–"), b.get(key, "–")) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def _lengths(values: list[int]) -> Lengths:
    lengths = Lengths()
    if values:
        lengths.add(np.array(values))
    return lengths


def _edges(first: Lengths, second: Lengths) -> np.ndarray:
    both = Lengths()
    for lengths in (first, second):
        both.add(np.flatnonzero(lengths.counts))
    return both.histogram()[1]


def _binned(lengths: Lengths, edges: np.ndarray) -> np.ndarray:
    padded = np.zeros(max(int(edges[-1]), len(lengths.counts)), dtype=np.int64)
    padded[: len(lengths.counts)] = lengths.counts
    return np.add.reduceat(padded, edges[:-1])
