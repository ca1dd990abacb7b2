"""What an answer must look like: a plain value that travels inside GenerationParams to the engine and to the loop.

A response format flows one way with its request. The settings (`hfray.config.response`), an HTTP request or a LangChain
call make it; the engine that gets the request lets the model write nothing else (`hfray.engines.guides`, or the
engine's own library); the engine loop checks the finished text (`hfray.inference.validator`) and tries again; the row
contract turns the checked value into typed columns (`hfray.data.responses`). There is no second path: a request
without a format is the same request with `params.response=None`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ANY_OBJECT = '{"type":"object"}'


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The form of an answer.

    Attributes:
        kind: how `text` describes the form. schema: a JSON Schema; regex: a regular expression that matches the whole
            answer; choice: a JSON list of the possible answers; grammar: a grammar in the engine's own language.
        retries: how often the loop tries again if an answer does not fit; then the answer is an error. None: the loop
            does not check answers.
        after_thought: the model thinks first; the form begins after the tag that ends the thought.
    """

    kind: Literal["schema", "regex", "choice", "grammar"]
    text: str
    retries: int | None = 0
    after_thought: bool = False

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any], retries: int | None = 0) -> ResponseFormat:
        """The format of a JSON Schema. The order of its properties is the order of the answer's."""
        return cls("schema", json.dumps(schema, ensure_ascii=False, separators=(",", ":")), retries)

    @classmethod
    def of_choices(cls, choices: Sequence[str], retries: int | None = 0) -> ResponseFormat:
        """One of these texts."""
        return cls("choice", json.dumps(list(choices), ensure_ascii=False), retries)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of kind `schema`."""
        return json.loads(self.text)

    @property
    def choices(self) -> list[str]:
        """The texts of kind `choice`."""
        return json.loads(self.text)
