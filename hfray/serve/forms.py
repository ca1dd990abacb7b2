"""The forms of answers that requests ask for: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hfray.config.response import XGRAMMAR
from hfray.config.schemas import check_references
from hfray.grammars import problem_of, xgrammar_problem
from hfray.response import ANY_OBJECT, ResponseFormat

MAX_CHARACTERS = 64 * 1024  # of a schema, expression or grammar
MAX_BOUND = 4096  # of a length or count in a schema: engines may expand such a bound


class TextFormat(BaseModel):
    """Plain text: no form."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["json_object"]


class NamedSchema(BaseModel):
    """A JSON Schema with OpenAI's names. `strict` changes nothing: the answer always has the form."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(BaseModel):
    """JSON that fits a schema."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["json_schema"]
    json_schema: NamedSchema


AnswerFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(BaseModel):
    """vLLM's field: one of these."""

    model_config = ConfigDict(strict=True, extra="forbid")

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> StructuredOutputs:
        given = [name for name, value in self if value not in (None, False)]
        if len(given) != 1:
            raise ValueError("structured_outputs needs exactly one of json, regex, choice, grammar and json_object")
        return self

    def form(self) -> ResponseFormat:
        """The form for the engine."""
        if self.json_ is not None:
            return ResponseFormat.of_schema(self.json_, None)
        if self.choice is not None:
            return ResponseFormat.of_choices(self.choice, None)
        if self.regex is not None:
            return ResponseFormat("regex", self.regex, None)
        if self.grammar is not None:
            return ResponseFormat("grammar", self.grammar, None)
        return ResponseFormat("schema", ANY_OBJECT, None)


def form_of(answer: AnswerFormat | None, structured: StructuredOutputs | None) -> ResponseFormat | None:
    """The form that a request asks for. The loop does not check it again: a client sees where its limit cut."""
    if structured is not None:
        return structured.form()
    if isinstance(answer, JsonObjectFormat):
        return ResponseFormat("schema", ANY_OBJECT, None)
    return ResponseFormat.of_schema(answer.json_schema.schema_, None) if isinstance(answer, JsonSchemaFormat) else None


def check_form(form: ResponseFormat, backend: str) -> None:
    """Raise ValueError if a client's form is too large or cannot be compiled. Bounded work; not on the event loop."""
    if len(form.text) > MAX_CHARACTERS:
        raise ValueError(f"the {form.kind} has {len(form.text):,} characters; at most {MAX_CHARACTERS:,} are accepted")
    if form.kind == "schema":
        check_references(form.schema)
        bound = largest_bound(form.schema)
        if bound > MAX_BOUND:
            raise ValueError(f"the schema has a length or count of {bound}; at most {MAX_BOUND} is accepted")
    if form.kind == "choice" and "" in form.choices:
        raise ValueError("choice: a choice must not be empty")
    problem = xgrammar_problem(form) if backend in XGRAMMAR else problem_of(form)
    if problem:
        raise ValueError(f"the {form.kind} cannot be compiled: {problem}")


def largest_bound(schema: object) -> float:
    """The largest length or count that a schema names."""
    largest, level = 0.0, [schema]
    while level:
        item = level.pop()
        if isinstance(item, dict):
            bounds = (
                item.get(f"{side}{what}") for side in ("min", "max") for what in ("Length", "Items", "Properties")
            )
            largest = max([largest, *(bound for bound in bounds if isinstance(bound, int | float))])
            level += item.values()
        elif isinstance(item, list):
            level += item
    return largest
