"""The columns that depend on the settings: `reasoning`, `response` or one for each property, and `num_attempts`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa

from hfray.completion import Completion
from hfray.config.engine import EngineSettings
from hfray.config.response import ResponseSettings
from hfray.data.jsontypes import JsonValue
from hfray.data.schematypes import Column, SchemaTypes
from hfray.errors import SettingsError
from hfray.grammars import closed

REASONING, RESPONSE, NUM_ATTEMPTS = "reasoning", "response", "num_attempts"
SCHEMA_KEY = b"hfray.response_schema"  # in the metadata of the Parquet files
UNFIT = (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError, KeyError)


class ResponseColumns:
    """The columns that a job's answers add to its output, in every file the same."""

    def __init__(self, settings: ResponseSettings, splits_reasoning: bool = False) -> None:
        self.metadata: dict[bytes, bytes] = {}
        self._columns: dict[str, Column] = {RESPONSE: Column(pa.string())}
        self._flat = settings.flatten
        form = settings.format
        if form is not None and form.kind == "schema":
            types = SchemaTypes(closed(form.schema), settings.parse_formats)
            self._columns = types.properties() if settings.flatten else {RESPONSE: types.column()}
            self.metadata[SCHEMA_KEY] = form.text.encode("utf-8", "replace")
        self._thinks = splits_reasoning or settings.after_reasoning
        self._typed = settings.given
        if not self._typed:
            self._columns = {}
        self.fields = [pa.field(REASONING, pa.string())] if self._thinks else []
        self.fields += [column.field(name) for name, column in self._columns.items()]
        self.fields += [pa.field(NUM_ATTEMPTS, pa.int32())] if self._typed else []

    @classmethod
    def of(cls, settings: EngineSettings) -> ResponseColumns | None:
        """The columns of these settings; None if answers are plain texts."""
        splits = settings.params.split_reasoning
        return cls(settings.response, splits) if settings.response.given or splits else None

    def check_names(self, columns: Collection[str], reserved: Collection[str]) -> None:
        """Raise SettingsError if a column has the name of an input column or of another output column."""
        for field in self.fields:
            if field.name not in columns and field.name not in reserved:
                continue
            whose = "a column of the input" if field.name in columns else "an output column of hfray"
            remedy = "rename the column of the input, or leave it out with input.columns"
            if self._flat and field.name not in (NUM_ATTEMPTS, REASONING):
                remedy = "rename the property in response.schema, or drop response.flatten"
            raise SettingsError(
                f"response: the column {field.name!r} of the answers has the name of {whose}: {remedy}."
            )

    def arrays(self, completions: Sequence[Completion]) -> tuple[list[pa.Array], list[str | None]]:
        """The columns of these answers, and why an answer cannot be stored, if so. A failed row has nulls."""
        values = [completion.response if completion.error is None else None for completion in completions]
        errors: list[str | None] = [None] * len(values)
        arrays = []
        if self._thinks:
            arrays.append(pa.array([_encodable(completion.reasoning) for completion in completions], pa.string()))
        for name, column in self._columns.items():
            cells = [value.get(name) if isinstance(value, dict) else None for value in values] if self._flat else values
            arrays.append(_array(column, name, cells, errors))
        if self._typed:
            attempts = [completion.num_attempts or None for completion in completions]
            arrays.append(pa.array(attempts, pa.int32()))
        return arrays, errors


def _encodable(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode()


def _array(column: Column, name: str, values: list[JsonValue], errors: list[str | None]) -> pa.Array:
    """The values as an array; a value that does not fit becomes null and an entry in `errors`."""
    try:
        return column.array(values)
    except UNFIT:
        fitting: list[JsonValue] = []
        for row, value in enumerate(values):
            try:
                column.array([value])
                fitting.append(value)
            except UNFIT as error:
                fitting.append(None)
                reason = " ".join(str(error).split())
                errors[row] = errors[row] or f"the answer does not fit column {name!r} of type {column.type} ({reason})"
        return column.array(fitting)
