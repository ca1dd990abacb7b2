"""Answers of the fake engine that fit a form: bytes chosen by a number among those that the form allows next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfray.engines.guides import allowed_tokens
from hfray.reasoning import END_OF_THOUGHT

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

BYTES = 256  # tokens from here on are special
THOUGHT = f"The row is short.{END_OF_THOUGHT}\n".encode()
CLOSING = frozenset(b'}]"')
AFTER_VALUE = frozenset(b",}]")  # what may follow a finished number
PLAIN = b"etaoinshrdlu "
MANY = 64  # allowed bytes: the answer is inside a text
CLOSES = 5  # one of so many bytes of a text closes it
GROWTH = 16  # bytes after which lists and texts close sooner
MULTIPLIER, INCREMENT, STATE = 1664525, 1013904223, 1 << 32  # a linear congruential generator


def byte_tokenizer() -> LLTokenizer:
    """llguidance's tokenizer with one token per byte, as the fake engine's."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def fitting_answer(guide: LLMatcher, number: int, length: int, thinks: bool = False) -> bytes:
    """A short answer that fits, the same for the same number; cut at `length` bytes.

    Args:
        guide: at the beginning of the form; moves to the end.
        thinks: begin with a thought, which the form asks for.
    """
    answer = bytearray(THOUGHT if thinks else b"")
    guide.consume_tokens(list(answer))
    while len(answer) < length and not guide.is_stopped() and not (answer and guide.is_accepting()):
        forced = guide.compute_ff_bytes()
        if not forced:
            number = (number * MULTIPLIER + INCREMENT) % STATE
            allowed = [token for token in allowed_tokens(guide.compute_bitmask()) if token < BYTES]
            if not allowed:
                break
            forced = bytes([_choose(allowed, number >> 16, len(answer))])
        answer += forced
        guide.consume_tokens(list(forced))
    return bytes(answer[:length])


def _choose(allowed: list[int], number: int, written: int) -> int:
    """One of the allowed bytes: texts are lowercase and short, numbers end early, lists and objects do not grow."""
    if len(allowed) > MANY:
        if ord('"') in allowed and number % CLOSES == 0:
            return ord('"')
        plain = [byte for byte in PLAIN if byte in allowed]
        return plain[number % len(plain)] if plain else allowed[number % len(allowed)]
    ends = [byte for byte in allowed if byte in AFTER_VALUE]
    if ends and (written > GROWTH or number % 2 or ord(",") not in ends):
        closing = [byte for byte in ends if byte in CLOSING]
        return (closing or ends)[0]
    if written > GROWTH and any(byte in CLOSING for byte in allowed):
        return next(byte for byte in allowed if byte in CLOSING)
    digits = [byte for byte in allowed if ord("0") <= byte <= ord("9")]
    choices = digits or allowed
    return choices[number % len(choices)]
