"""Forms of answers as OpenVINO GenAI takes them."""

from __future__ import annotations

import functools
import json

import openvino_genai as genai

from hfray.engines.ebnf import after_thought, either, literal, one_line_ebnf
from hfray.errors import RequestError
from hfray.grammars import closed, xgrammar_problem
from hfray.response import ResponseFormat


@functools.lru_cache(maxsize=256)
def structured_output(form: ResponseFormat) -> genai.StructuredOutputConfig:
    """A form as GenAI takes it. Raises RequestError if GenAI could not compile it."""
    problem = xgrammar_problem(form)
    if problem:
        raise RequestError(f"response: the {form.kind} cannot be compiled: {problem}")
    ebnf = _ebnf(form)
    if ebnf is not None:
        return genai.StructuredOutputConfig(grammar=after_thought(ebnf) if form.after_thought else ebnf)
    if form.after_thought:
        raise RequestError(
            f"response.after_reasoning=true: backend=openvino cannot begin this {form.kind} after a thought. Use "
            "backend=transformers."
        )
    if form.kind == "regex":
        return genai.StructuredOutputConfig(regex=form.text)
    return genai.StructuredOutputConfig(json_schema=json.dumps(closed(form.schema)))


def _ebnf(form: ResponseFormat) -> str | None:
    """The form as EBNF; None if only GenAI's own conversion can express it."""
    if form.kind == "schema":
        return one_line_ebnf(closed(form.schema))
    if form.kind == "choice":
        return f"root ::= {either(map(literal, form.choices))}\n"
    return form.text if form.kind == "grammar" else None
