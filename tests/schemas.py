"""JSON Schemas that several tests use."""

from __future__ import annotations

REVIEW = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative", "neutral"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "topics": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["sentiment", "stars", "topics"],
}
TREE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 6},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "maxItems": 1},
            },
            "required": ["name", "children"],
        }
    },
}
PAIR = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}
DIFFERENT_PAIR = PAIR | {"uniqueItems": True}  # no engine enforces uniqueItems: half of the random answers do not fit


def chain(length: int) -> dict:
    """A schema of objects, each of which refers to the next."""
    parts = {f"a{n}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}} for n in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": parts | {f"a{length}": {"type": "integer"}}}
