"""Checks finished answers against the form that they must have, independently of the engine that held them to it."""

from __future__ import annotations

import functools
import json
import re
from typing import Any, NoReturn

from hfray.response import ResponseFormat


class Validator:
    """Checks the answers of one form. Thread-safe. Imports jsonschema only for a schema."""

    def __init__(self, form: ResponseFormat) -> None:
        self._kind = form.kind
        if form.kind == "schema":
            from jsonschema.validators import Draft202012Validator, validator_for
            from referencing import Registry

            schema = form.schema
            kind = validator_for(schema, default=Draft202012Validator)
            self._schema: Any = kind(schema, registry=Registry())  # an empty registry: fetches nothing
        elif form.kind == "choice":
            self._choices = set(form.choices)
        elif form.kind == "regex":
            self._pattern = re.compile(form.text)

    def check(self, text: str, finish_reason: str) -> tuple[Any, str | None]:
        """The answer as a JSON value, and why it does not fit; None if it fits."""
        value, problem = self._check(text)
        if problem is None and self._kind == "grammar" and finish_reason == "length":
            problem = "it is not complete"
        if problem is None:
            return value, None
        cut = ", and was cut at generation.max_new_tokens" if finish_reason == "length" else ""
        return None, f"the answer does not fit its {self._kind}{cut}: {problem}"

    def _check(self, text: str) -> tuple[Any, str | None]:
        if self._kind == "schema":
            return self._check_json(text)
        if self._kind == "choice" and text not in self._choices:
            return None, "it is none of the choices"
        if self._kind == "regex" and not self._pattern.fullmatch(text):
            return None, "the regular expression does not match it"
        return text, None

    def _check_json(self, text: str) -> tuple[Any, str | None]:
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return None, f"it is not JSON ({error})"
        try:
            fault = next(self._schema.iter_errors(value), None)
        except RecursionError:
            return None, "it is nested too deep to be checked"
        if fault is None:
            return value, None
        place = "/".join(map(str, fault.absolute_path))
        return None, fault.message[:200] + (f" (at {place})" if place else "")


@functools.lru_cache(maxsize=256)
def validator_of(form: ResponseFormat) -> Validator:
    """The validator of a form; equal forms share one."""
    return Validator(form)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
