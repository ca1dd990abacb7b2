"""Parameters of generation: fields of transformers' GenerationConfig, checked, and `seed` and `stop`."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hfray.errors import RequestError
from hfray.response import ResponseFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """What to generate, with the field names of transformers' `GenerationConfig`.

    Attributes:
        max_new_tokens: most tokens to generate; overrides `max_length`, as in transformers.
        max_length: most tokens of prompt and completion together.
        do_sample: sample, or take the most likely token; None: sample if `temperature` is above 0.
        temperature: softmax temperature; 0 is greedy.
        stop_strings: the completion ends before the first of these.
        seed: base seed; a row's own seed depends on the base seed and on the row's prompt (`row_seed`).
        ignore_eos: continue after the end-of-sequence token, for measurements.
        logprobs: number of most likely tokens to report with each generated token; 0 reports the generated token only.
        num_beams, length_penalty, early_stopping: beam search, for sequence-to-sequence models; None: the value of
            the model's generation_config.
        split_reasoning: put the thought of a reasoning model (`<think>...</think>`) into a column of its own.
        response: the form that the answer must have; a setting of its own (`response.*`), not of `generation.*`.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop_strings: tuple[str, ...] = ()
    seed: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    split_reasoning: bool = False
    response: ResponseFormat | None = None

    DEFAULT_MAX_NEW_TOKENS = 256  # as transformers' text-generation pipeline

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"generation.{name}={value!r}: must be a number.")
            if not low <= value <= high:
                raise ValueError(f"generation.{name}={value!r}: must be between {low} and {high}.")
        if not isinstance(self.split_reasoning, bool):
            raise ValueError(f"generation.split_reasoning={self.split_reasoning!r}: must be true or false.")
        for name in _INTEGERS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise ValueError(f"generation.{name}={value!r}: must be a whole number.")
        if any(not isinstance(stop, str) or not stop for stop in self.stop_strings):
            raise ValueError(f"generation.stop_strings={self.stop_strings!r}: must be non-empty strings.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> GenerationParams:
        """Build from config or keyword arguments; `stop` is another name for `stop_strings`.

        Raises:
            ValueError: an unknown field, a wrong type, or a value out of range; the message names the key.
        """
        given: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
        stop = given.pop("stop", ())
        stop = given.get("stop_strings", stop)
        given["stop_strings"] = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
        known = cls.names()
        for key in given.keys() - set(known):
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean generation.{close[0]}?" if close else f"Known: {', '.join(sorted(known))}."
            raise ValueError(f"generation.{key}={given[key]!r}: not a generation setting of hfray. {hint}")
        return cls(**given)

    @classmethod
    def names(cls) -> list[str]:
        """The settings of `generation.*`."""
        return [field.name for field in fields(cls) if field.name != "response"]

    def to_mapping(self) -> dict[str, object]:
        """The settings of `generation.*` that differ from their defaults, as plain JSON values."""
        known = self.names()
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        values = {name: value for name, value in values.items() if name in known}
        if "stop_strings" in values:
            values["stop_strings"] = list(values["stop_strings"])
        return values

    def with_stop(self, stop: list[str] | str | None) -> GenerationParams:
        """These parameters with further stop strings."""
        more = (stop,) if isinstance(stop, str) else tuple(stop or ())
        return replace(self, stop_strings=(*self.stop_strings, *more)) if more else self

    @property
    def beyond_greedy(self) -> str | None:
        """A parameter that asks for more than the most likely tokens, as `name=value`; None if there is none."""
        asks = {
            "temperature": self.sampling,
            "repetition_penalty": self.repetition_penalty not in (None, 1.0),
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "min_new_tokens": self.min_new_tokens,
            "logprobs": self.logprobs is not None,
        }
        return next((f"{name}={getattr(self, name)}" for name, asked in asks.items() if asked), None)

    @property
    def sampling(self) -> bool:
        """Whether tokens are sampled; temperature 0 is greedy even with `do_sample=True`."""
        if self.temperature == 0:
            return False
        return bool(self.temperature) if self.do_sample is None else self.do_sample

    def row_seed(self, prompt: str, sample: int | str = 0) -> int:
        """The seed of one row; it depends on `seed`, the prompt and the row or sample, not on the batch or on retries."""
        digest = hashlib.blake2b(f"{self.seed}/{sample}/{prompt}".encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest()[:4])

    def max_tokens_for(self, prompt_tokens: int, context_length: int | None) -> int:
        """Most tokens to generate after a prompt of `prompt_tokens` tokens.

        Raises:
            RequestError: the prompt fills the model's context or `max_length`; the message has both lengths.
        """
        if context_length is not None and prompt_tokens >= context_length:
            raise RequestError(
                f"prompt too long: {prompt_tokens} tokens, and the model's context holds {context_length}"
            )
        if self.max_new_tokens is not None:
            room = self.max_new_tokens
        elif self.max_length is not None:
            room = self.max_length - prompt_tokens
            if room <= 0:
                raise RequestError(
                    f"prompt too long: {prompt_tokens} tokens, but generation.max_length={self.max_length} "
                    "includes the prompt"
                )
        else:
            room = self.DEFAULT_MAX_NEW_TOKENS
        return room if context_length is None else min(room, context_length - prompt_tokens)


_RANGES = [
    ("max_new_tokens", 1, 1 << 30),
    ("max_length", 1, 1 << 30),
    ("min_new_tokens", 0, 1 << 30),
    ("temperature", 0, 100),
    ("top_k", 0, 1 << 30),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("repetition_penalty", 1e-6, 100),
    ("no_repeat_ngram_size", 0, 1 << 30),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("seed", 0, (1 << 63) - 1),
    ("logprobs", 0, 100),
    ("num_beams", 1, 64),
    ("length_penalty", -100, 100),
]
_INTEGERS = "max_new_tokens max_length min_new_tokens top_k no_repeat_ngram_size seed logprobs num_beams".split()
