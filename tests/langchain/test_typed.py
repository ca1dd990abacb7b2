"""Typed answers of the LangChain class: `bind(response_schema=...)`."""

from __future__ import annotations

import json

import jsonschema
import pydantic
import pytest
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser

from hfray.langchain.llm import HuggingFacePipeline
from tests.schemas import DIFFERENT_PAIR, PAIR

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["mood", "stars"],
}


class Review(pydantic.BaseModel):
    stars: int = pydantic.Field(ge=1, le=5)


@pytest.fixture(scope="module")
def llm(tiny_gpt2):
    given = {"max_new_tokens": 40, "do_sample": False}
    return HuggingFacePipeline.from_model_id(str(tiny_gpt2), "text-generation", pipeline_kwargs=given)


def test_the_answer_fits_the_schema_and_is_the_json_alone(llm):
    typed = llm.bind(response_schema=SCHEMA)
    for text in typed.batch(["Rate it.", "How was it?"]):
        jsonschema.validate(json.loads(text), SCHEMA)
    assert (typed | JsonOutputParser()).invoke("Rate it.")["stars"] in range(1, 6)
    assert "".join(typed.stream("Rate it.")) == typed.invoke("Rate it.")
    assert llm.invoke("Rate it.").startswith("Rate it.")  # other calls are as before


def test_a_pydantic_class_is_a_schema(llm):
    chain = llm.bind(response_schema=Review) | PydanticOutputParser(pydantic_object=Review)
    assert chain.invoke("Rate it.").stars in range(1, 6)


def test_an_answer_that_never_fits_is_an_error_of_its_row(llm):
    typed = llm.bind(response_schema=DIFFERENT_PAIR, response_retries=0)
    answers = typed.batch([f"Row {number}" for number in range(12)], return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    assert errors
    assert all("non-unique" in str(error) for error in errors)


@pytest.mark.parametrize("schema", [{"type": "objekt"}, "missing.json", {"$ref": "#/x"}])
def test_what_is_no_schema_is_refused(llm, schema):
    with pytest.raises(ValueError, match=r"response\.schema"):
        llm.bind(response_schema=schema).invoke("Rate it.")


def test_the_pipeline_may_have_a_schema(tiny_gpt2):
    given = {"max_new_tokens": 20, "do_sample": False, "response_schema": PAIR}
    llm = HuggingFacePipeline.from_model_id(str(tiny_gpt2), "text-generation", pipeline_kwargs=given)
    jsonschema.validate(json.loads(llm.invoke("Two numbers:")), PAIR)
