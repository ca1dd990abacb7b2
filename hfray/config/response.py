"""Settings of typed answers: the form that every answer must have, and how it becomes columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from hfray.config.backend import STRICT, Backend
from hfray.config.schemas import check_schema, read_schema, unenforced
from hfray.grammars import problem_of, resolve, xgrammar_problem
from hfray.response import ANY_OBJECT, ResponseFormat

XGRAMMAR = ("openvino", "vllm")  # the backends with xgrammar inside
FORMS = ("schema", "regex", "choice", "grammar", "json")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ResponseSettings:
    """The form of the answers: one of `schema`, `regex`, `choice`, `grammar` and `json`, or none of them.

    Attributes:
        schema: a JSON Schema, also given as a file, a URL or `module:PydanticModel`; here it is the schema itself.
        choice: the possible answers, or the column that holds each row's list of them.
        grammar: EBNF as in llama.cpp's GBNF; transformers and fake take Lark too.
        json: any JSON object.
        after_reasoning: the model thinks first; the form begins after its thought.
    """

    schema: str | dict[str, object] | None = None
    regex: str | None = None
    choice: list[str] | str | None = None
    grammar: str | None = None
    json: bool = False
    flatten: bool = False
    retries: int = Field(default=1, ge=0, le=10)
    parse_formats: bool = False
    after_reasoning: bool = False

    @field_validator("schema", mode="before")
    @classmethod
    def _read_schema(cls, given: object) -> object:
        found = read_schema(given)
        if found is not None and not isinstance(found, dict):
            raise ValueError(f"response.schema={given!r}: is not a JSON object. Use a JSON Schema.")
        return found

    def __post_init__(self) -> None:
        given = [name for name in FORMS if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ValueError(f"response.{given[0]} and response.{given[1]} are both given. Drop one of them.")
        if self.schema is not None:
            check_schema(self.json_schema)
        if self.regex is not None:
            _check_regex(self.regex)
        if isinstance(self.choice, list) and (not self.choice or "" in self.choice or _repeated(self.choice)):
            raise ValueError(f"response.choice={self.choice!r}: must be different texts, none of them empty.")
        if self.after_reasoning and (self.grammar is not None or not given):
            remedy = (
                "write the thought into response.grammar itself" if given else "use generation.split_reasoning=true"
            )
            raise ValueError(f"response.after_reasoning=true: needs another form than a grammar; {remedy}.")
        if self.flatten and not self.properties:
            raise ValueError(
                "response.flatten=true: needs a response.schema of an object with properties. Drop response.flatten."
            )

    @property
    def json_schema(self) -> dict[str, Any]:
        """The schema; only if there is one."""
        return cast("dict[str, Any]", self.schema)

    @property
    def properties(self) -> dict[str, Any]:
        """The top-level properties of the schema, empty if the answer is no object with properties."""
        found: Any = self.schema
        while isinstance(found, dict) and "properties" not in found and "$ref" in found:
            found = resolve(self.json_schema, str(found["$ref"]))
        return found.get("properties", {}) if isinstance(found, dict) else {}

    @property
    def given(self) -> bool:
        """Whether answers must have a form."""
        return self.format is not None or self.choice_column is not None

    @property
    def choice_column(self) -> str | None:
        """The column that holds each row's choices."""
        return self.choice if isinstance(self.choice, str) else None

    @property
    def format(self) -> ResponseFormat | None:
        """The form of all answers; None without one, or if each row has its own choices."""
        form = self._form
        return form and replace(form, after_thought=self.after_reasoning)

    def of_choices(self, choices: Sequence[str]) -> ResponseFormat:
        """The form of a row with choices of its own."""
        return replace(ResponseFormat.of_choices(choices, self.retries), after_thought=self.after_reasoning)

    @property
    def _form(self) -> ResponseFormat | None:
        if self.schema is not None:
            return ResponseFormat.of_schema(self.json_schema, self.retries)
        if self.json:
            return ResponseFormat("schema", ANY_OBJECT, self.retries)
        if self.regex is not None:
            return ResponseFormat("regex", self.regex, self.retries)
        if isinstance(self.choice, list):
            return ResponseFormat.of_choices(self.choice, self.retries)
        return None if self.grammar is None else ResponseFormat("grammar", self.grammar, self.retries)

    def check_engine(self, backend: Backend, task: str) -> None:
        """Raise ValueError if the engine cannot hold answers to this form."""
        if not self.given:
            return
        key = next(f"response.{name}" for name in FORMS if getattr(self, name) not in (None, False))
        if task != "text-generation":
            raise ValueError(f"{key}: task={task} cannot hold its answers to a form. Use task=text-generation.")
        if backend.name == "transformers" and backend.paged:
            raise ValueError(f"{key}: backend.paged=true cannot hold its answers to a form. Use backend.paged=false.")
        name = (
            "transformers" if backend.name == "auto" else backend.name
        )  # auto takes vLLM only if vLLM enforces it too
        if self.schema is not None:
            found = unenforced(self.json_schema, name)
            if found is not None:
                keyword, place, others = found
                raise ValueError(
                    f"{key}: backend={backend.name} cannot enforce {keyword!r} (at {place}). Use one of the backends that "
                    f"can ({', '.join(others)}), or leave {keyword!r} out."
                )
        if self.format is None:
            return
        problem = problem_of(self.format)
        if problem:
            raise ValueError(f"{key}: cannot be compiled: {problem}. Simplify it.")
        problem = xgrammar_problem(self.format) if backend.name in XGRAMMAR else None
        if problem:
            raise ValueError(
                f"{key}: backend={backend.name} cannot enforce it: {problem}. Use backend=transformers, or simplify it."
            )


def _check_regex(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"response.regex={pattern!r}: is not a regular expression ({error}). Correct it.") from error


def _repeated(choices: list[str]) -> bool:
    return len(set(choices)) < len(choices)
