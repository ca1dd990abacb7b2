"""Two output folders of one input, side by side: equal and different answers, lengths, failures.

Rows are joined on `row_id`. Texts are read only for a random sample of the rows that differ.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import ClassVar

import numpy as np
from markupsafe import Markup
from pydantic import Field
from pydantic.dataclasses import dataclass

from hfray.config.engine import STRICT
from hfray.errors import SettingsError
from hfray.runs.side import Side, read_side, read_texts
from hfray.runs.textdiff import Parting, mark, parting
from hfray.runs.words import cut

DIFFERING_READ = 20_000  # differing rows to read, to find where their texts part


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PageOutput:
    """The file to write the page to."""

    path: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompareSettings:
    """The settings of `jobs.compare`; `samples` is the number of differing rows on the page."""

    ROOT: ClassVar[str] = "compare"

    first: str
    second: str
    output: PageOutput
    samples: int = Field(default=60, ge=0)


@plain_dataclass(slots=True)
class Pair:
    """Two different answers to one row, with their differences marked; `other_prompt` is None if the prompts agree."""

    row_id: str
    prompt: str
    other_prompt: str | None
    first: Markup
    second: Markup
    where: Parting


@plain_dataclass(slots=True)
class Comparison:
    """What two folders have in common; `same`, `differ` and the failures cover the rows that both folders have."""

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
    pairs: list[Pair] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Rows with an answer in both folders."""
        return self.same + self.differ


def compare(settings: CompareSettings) -> Comparison:
    """Compare two output folders.

    Raises:
        SettingsError: a folder is not an hfray output folder, or the folders have no row in common.
    """
    first, second = read_side(settings.first, "first"), read_side(settings.second, "second")
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
    differing = _count(result, at_a, at_b)
    chosen = np.random.default_rng(0).permutation(differing)[:DIFFERING_READ]
    _read_differing(result, np.sort(chosen), chosen[: settings.samples])
    return result


def _count(result: Comparison, at_a: np.ndarray, at_b: np.ndarray) -> np.ndarray:
    """Count the rows at these places of the two sides, which belong together; returns the ids of differing rows."""
    a, b = (side.answers for side in result.sides)
    bad_a, bad_b = a.failed[at_a], b.failed[at_b]
    equal = a.texts[at_a] == b.texts[at_b]
    good = ~bad_a & ~bad_b
    result.same, result.differ = int((equal & good).sum()), int((~equal & good).sum())
    result.failed_both = int((bad_a & bad_b).sum())
    result.failed_first = int(bad_a.sum()) - result.failed_both
    result.failed_second = int(bad_b.sum()) - result.failed_both
    longer = a.tokens[at_a][good].astype(np.int64) - b.tokens[at_b][good]
    result.longer_first, result.longer_second = int((longer > 0).sum()), int((longer < 0).sum())
    return a.ids[at_a[~equal & good]]


def _read_differing(result: Comparison, chosen: np.ndarray, shown: np.ndarray) -> None:
    """Read the texts of the chosen rows: where each pair parts, and the pairs to show."""
    if not len(chosen):
        return
    first, second = (
        read_texts(side.path, key, chosen) for key, side in zip(("first", "second"), result.sides, strict=True)
    )
    result.partings = [parting(first[key].answer, second[key].answer) for key in first.keys() & second.keys()]
    for row_hash in shown:
        one, other = first.get(row_hash.item()), second.get(row_hash.item())
        if one is None or other is None:
            continue
        marked = mark(cut(one.answer), cut(other.answer))
        other_prompt = None if other.prompt == one.prompt else cut(other.prompt)
        where = parting(one.answer, other.answer)
        result.pairs.append(Pair(one.row_id, cut(one.prompt), other_prompt, *marked, where))
