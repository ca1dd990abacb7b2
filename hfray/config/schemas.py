"""JSON Schemas of the settings: where they come from, and which of their keywords an engine enforces."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import yaml

from hfray.config.secrets import check_no_credentials
from hfray.grammars import LISTS, MAPPINGS, SCHEMAS, resolve
from hfray.urls import URL, absolute

ALL = ("openvino", "transformers", "vllm", "fake")
LLGUIDANCE = ("transformers", "fake")  # backends on llguidance; OpenVINO GenAI and vLLM have xgrammar inside
# Which backends enforce a keyword while the model writes. A keyword that no backend enforces is checked afterwards.
ENFORCED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"), ALL),
    **dict.fromkeys(("properties", "required", "additionalProperties", "patternProperties"), ALL),
    **dict.fromkeys(("minProperties", "maxProperties"), ALL),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), ALL),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), ALL),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), ALL),
    "multipleOf": LLGUIDANCE,
}
CHECKED = ("uniqueItems", "not", "if", "contains", "dependentRequired", "dependentSchemas", "propertyNames")
CHECKED += ("unevaluatedItems", "unevaluatedProperties")
REFUSED = ("$dynamicRef", "$recursiveRef")  # neither engines nor columns can follow them
OBJECT_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*")


def read_schema(given: object) -> object:
    """The JSON Schema that `response.schema` names.

    Args:
        given: the schema itself as a mapping or as JSON or YAML text; a file, local or in the cloud;
            `module:PydanticModel`; or the class. Anything else is returned unchanged.

    Raises:
        ValueError: the file or the class cannot be read.
    """
    if isinstance(given, type):
        return _schema_of_class(given)
    if not isinstance(given, str):
        return given
    check_no_credentials("response.schema", given)
    try:
        if given.lstrip().startswith("{"):
            return _parse(given)
        if OBJECT_NAME.fullmatch(given):
            module, _, name = given.partition(":")
            return _schema_of_class(getattr(importlib.import_module(module), name))
        return _parse(_read(given))
    except (OSError, ImportError, AttributeError, TypeError, ValueError, NotImplementedError, yaml.YAMLError) as error:
        raise ValueError(
            f"response.schema={given}: cannot be read ({' '.join(str(error).split())}). Name a file with a JSON Schema, "
            "module:PydanticModel, or write the schema itself."
        ) from error


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise ValueError unless this is a valid JSON Schema that refers to nothing outside itself."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    try:
        validator_for(schema, default=Draft202012Validator).check_schema(dict(schema))
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "the top"
        raise ValueError(
            f"response.schema: is not a JSON Schema: {error.message} (at {place}). Correct it there."
        ) from error
    check_references(schema)


def check_references(schema: Mapping[str, Any]) -> None:
    """Raise ValueError if a schema refers to anything outside itself."""
    for place, part in subschemas(schema):
        found = next((name for name in REFUSED if name in part), None)
        if found:
            raise ValueError(f"response.schema: {found} at {place} is not supported. Use $ref to a part of the schema.")
        ref = part.get("$ref")
        if ref is not None and resolve(schema, str(ref)) is None:
            raise ValueError(
                f"response.schema: $ref {ref!r} at {place} does not name a part of this schema. Put that schema under "
                "$defs, and refer to it as #/$defs/NAME."
            )


def subschemas(schema: object, place: str = "#") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema inside a schema, itself first, each with its place as in `#/properties/stars`."""
    if not isinstance(schema, Mapping):
        return
    part = cast("Mapping[str, Any]", schema)
    yield place, part
    for name in SCHEMAS:
        yield from subschemas(part.get(name), f"{place}/{name}")
    for name in LISTS:
        for number, inner in enumerate(part.get(name) or ()):
            yield from subschemas(inner, f"{place}/{name}/{number}")
    for name in MAPPINGS:
        for key, inner in (part.get(name) or {}).items():
            yield from subschemas(inner, f"{place}/{name}/{key}")


def unenforced(schema: Mapping[str, Any], backend: str) -> tuple[str, str, tuple[str, ...]] | None:
    """A keyword that this backend does not enforce and others do, its place, and those backends; None without one."""
    for place, part in subschemas(schema):
        for name in part:
            backends = ENFORCED.get(name, ALL)
            if backend not in backends:
                return name, place, backends
    return None


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def _read(path: str) -> str:
    from pyarrow import fs

    if URL.fullmatch(path):
        filesystem, inside = fs.FileSystem.from_uri(path)
    else:
        filesystem, inside = fs.LocalFileSystem(), absolute(path)
    with filesystem.open_input_stream(inside) as stream:
        return stream.read().decode()


def _schema_of_class(kind: object) -> dict[str, Any]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        schema: dict[str, Any] = TypeAdapter(cast("type[object]", kind)).json_schema()
    except PydanticUserError as error:
        raise TypeError(str(error).splitlines()[0]) from error
    return json.loads(json.dumps(schema))
