"""Distributions of typed answers, column by column, read from the Parquet files of an output folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from pyarrow.compute import StructFieldOptions, call_function, cast

from hfray.data.output import OutputFolder
from hfray.data.partreport import count_responses
from hfray.data.parts import open_part
from hfray.data.responses import NUM_ATTEMPTS, REASONING

BATCH_ROWS = 1 << 16
MAX_VALUES = 1000  # different texts of a column that are counted; beyond, only their number is known to be large
SHOWN = 12
BEFORE = "num_generated_tokens"  # the column before the answers' columns


@dataclass(slots=True)
class Distribution:
    """The values of one column, of one field of a struct (`a.b`), or of the items of a list (`a[]`).

    Attributes:
        texts: how often each text or truth value occurs; empty if there are more than MAX_VALUES.
        low, high, total: of numbers, with `count` of them.
    """

    name: str
    count: int = 0
    missing: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    many: bool = False
    low: float | None = None
    high: float | None = None
    total: float = 0.0

    @property
    def words(self) -> str:
        """The distribution in one line."""
        if not self.count:
            return "no values"
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}, on average {self.total / self.count:.4g}"
        if self.many or len(self.texts) > MAX_VALUES // 2:
            return "many different texts"
        shown = [f"{_short(text)}: {number:,}" for text, number in self.texts.most_common(SHOWN)]
        rest = len(self.texts) - len(shown)
        return ", ".join(shown) + (f", and {rest:,} more" if rest else "")

    def add(self, values: pa.Array) -> None:
        """Count the values of a column of numbers, texts or truth values."""
        good = values.drop_null()
        self.count += len(good)
        self.missing += len(values) - len(good)
        if not len(good):
            return
        if pa.types.is_integer(good.type) or pa.types.is_floating(good.type):
            ends = call_function("min_max", [good]).as_py()
            self.low = ends["min"] if self.low is None else min(self.low, ends["min"])
            self.high = ends["max"] if self.high is None else max(self.high, ends["max"])
            self.total += call_function("sum", [cast(good, pa.float64())]).as_py()
        elif not self.many:
            counts = cast(good, pa.string()).value_counts()
            if len(counts) <= MAX_VALUES:
                self.texts.update({entry["values"]: entry["counts"] for entry in counts.to_pylist()})
            if len(counts) > MAX_VALUES or len(self.texts) > MAX_VALUES:
                self.many, self.texts = True, Counter()


@dataclass(slots=True)
class Answers:
    """The typed answers of a folder: how many fit (`hfray.data.partreport`), and the values of each column."""

    counts: Counter[str] = field(default_factory=Counter)
    columns: list[Distribution] = field(default_factory=list)


def read_answers(output: OutputFolder) -> Answers:
    """Count the typed answers of a folder; empty if the answers have no form."""
    answers, found = Answers(), dict[str, Distribution]()
    for part in output.parts():
        with open_part(output, part) as parquet:
            columns = answer_columns(parquet.schema_arrow)
            read = [*columns, NUM_ATTEMPTS, "error"]
            for batch in parquet.iter_batches(BATCH_ROWS, columns=read) if columns else ():
                answers.counts.update(count_responses(batch[NUM_ATTEMPTS], batch["error"].is_null()))
                for name in columns:
                    for leaf, values in _leaves(name, batch[name]):
                        found.setdefault(leaf, Distribution(leaf)).add(values)
    answers.columns = list(found.values())
    return answers


def answer_columns(schema: pa.Schema) -> list[str]:
    """The names of the columns that hold typed answers."""
    names = schema.names
    if NUM_ATTEMPTS not in names or BEFORE not in names:
        return []
    between = names[names.index(BEFORE) + 1 : names.index(NUM_ATTEMPTS)]
    return [name for name in between if name != REASONING]


def _leaves(name: str, values: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    kind = values.type
    if pa.types.is_struct(kind):
        good = values.drop_null()  # the fields of a failed row are not missing values
        for index in range(kind.num_fields):
            yield from _leaves(
                f"{name}.{kind.field(index).name}", call_function("struct_field", [good], StructFieldOptions([index]))
            )
    elif pa.types.is_list(kind):
        yield from _leaves(f"{name}[]", call_function("list_flatten", [values]))
    elif not pa.types.is_map(kind) and not pa.types.is_null(kind):
        yield name, values


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
