"""The settings of typed answers: what they accept, and what they refuse before anything starts."""

from __future__ import annotations

import enum
import json
import pickle

import pydantic
import pytest

from hfray.config.response import ResponseSettings
from hfray.errors import SettingsError
from hfray.response import ANY_OBJECT, ResponseFormat
from hfray.runs.fingerprint import fingerprint
from tests.conftest import batch_settings
from tests.schemas import REVIEW, TREE

FAKE = ["conf=fake", "input.path=in.jsonl", "output.path=out"]


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Review(pydantic.BaseModel):
    mood: Mood
    stars: int = pydantic.Field(ge=1, le=5)


def test_without_a_form_answers_are_plain_text():
    settings = batch_settings(*FAKE)
    assert settings.params.response is None
    assert not any(key.startswith("response") for key in fingerprint(settings))


def test_a_schema_comes_from_text_a_file_or_a_pydantic_model(tmp_path):
    expected = ResponseFormat.of_schema(REVIEW, 1)
    (tmp_path / "review.json").write_text(json.dumps(REVIEW, indent="\t"))
    (tmp_path / "review.yaml").write_text("type: object\nproperties: {stars: {type: integer}}\n")
    assert batch_settings(*FAKE, f"response.schema={json.dumps(REVIEW)}").params.response == expected
    assert batch_settings(*FAKE, f"response.schema={tmp_path}/review.json").params.response == expected
    yaml = batch_settings(*FAKE, f"response.schema={tmp_path}/review.yaml").params.response
    assert yaml == ResponseFormat.of_schema({"type": "object", "properties": {"stars": {"type": "integer"}}}, 1)
    model = batch_settings(*FAKE, f"response.schema={__name__}:Review").params.response
    assert model.schema["properties"].keys() == {"mood", "stars"}
    assert ResponseSettings(schema=Review).format == model


def test_the_schema_stays_with_the_settings_when_they_travel(tmp_path):
    """A worker on another machine has no such file."""
    path = tmp_path / "review.json"
    path.write_text(json.dumps(REVIEW))
    settings = batch_settings(*FAKE, f"response.schema={path}")
    path.unlink()
    assert pickle.loads(pickle.dumps(settings)).params == settings.params
    assert hash(settings.params.response) == hash(ResponseFormat.of_schema(REVIEW, 1))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("response.regex=[0-9]{3}", ResponseFormat("regex", "[0-9]{3}", 1)),
        ("response.choice=[yes,no]", ResponseFormat.of_choices(["yes", "no"], 1)),
        ("response.grammar=start: /a+/", ResponseFormat("grammar", "start: /a+/", 1)),
        ("response.json=true", ResponseFormat("schema", ANY_OBJECT, 1)),
    ],
)
def test_other_forms(given, expected):
    assert batch_settings(*FAKE, given).params.response == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["response.schema={type: objekt}"], "response.schema: is not a JSON Schema: 'objekt'"),
        (["response.schema={type: object, properties: {a: {minimum: x}}}"], "at properties/a/minimum"),
        (["response.schema=missing.json"], "response.schema=missing.json: cannot be read"),
        (["response.schema=missing.module:Model"], "response.schema=missing.module:Model: cannot be read"),
        (["response.schema={$ref: '#/$defs/Missing'}"], "$ref '#/$defs/Missing' at # does not name a part"),
        (["response.schema={$ref: 'https://example.org/schema'}"], "does not name a part of this schema"),
        (["response.schema={$dynamicRef: '#node'}"], "$dynamicRef at # is not supported"),
        (["response.regex=("], "response.regex='(': is not a regular expression"),
        (["response.regex=(?=a)b"], "response.regex: cannot be compiled"),
        (["response.grammar=start: missing"], "response.grammar: cannot be compiled"),
        (["response.choice=[a,a]"], "response.choice=['a', 'a']: must be different texts"),
        (["response.regex=a", "response.json=true"], "response.regex and response.json are both given"),
        (["response.json=true", "response.flatten=true"], "response.flatten=true: needs a response.schema"),
        (["response.json=true", "backend=transformers", "backend.paged=true"], "Use backend.paged=false"),
        (["response.json=true", "backend=transformers", "task=summarization"], "Use task=text-generation"),
        (
            ["response.schema={type: integer, multipleOf: 7}", "backend=openvino"],
            "backend=openvino cannot enforce 'multipleOf' (at #). Use one of the backends that can (transformers, fake)",
        ),
        (["response.after_reasoning=true"], "use generation.split_reasoning=true"),
        (["response.grammar=start: /a/", "response.after_reasoning=true"], "write the thought into response.grammar"),
        (["generation.split_reasoning=yes"], "generation.split_reasoning='yes': must be true or false"),
        (["response.retries=-1"], "response.retries=-1"),
        (["response.schemas=1"], "Did you mean response.schema?"),
    ],
)
def test_what_cannot_work_is_refused_by_name(given, words):
    with pytest.raises(SettingsError) as caught:
        batch_settings(*FAKE, *given)
    assert words in str(caught.value)


def test_a_pool_that_cannot_enforce_the_schema_is_refused():
    with pytest.raises(SettingsError, match="backend=openvino cannot enforce 'multipleOf'"):
        batch_settings(
            *FAKE,
            "response.schema={type: integer, multipleOf: 7}",
            "workers=[{name: a, backend: fake}, {name: b, backend: openvino}]",
        )


def test_the_form_is_part_of_the_fingerprint():
    def prints(*given: str) -> dict:
        return fingerprint(batch_settings(*FAKE, *given))

    one = f"response.schema={json.dumps(REVIEW)}"
    assert prints(one)["response.schema"] == ResponseFormat.of_schema(REVIEW).text
    others = [prints(f"response.schema={json.dumps(TREE)}"), prints(one, "response.retries=2"), prints()]
    others += [prints(one, f"response.{key}=true") for key in ("flatten", "parse_formats", "after_reasoning")]
    assert all(other != prints(one) for other in others)
    assert prints("response.choice=labels")["response.choice"] == "labels"
