"""The settings of one call, and the text that the caller gets."""

from __future__ import annotations

from dataclasses import dataclass

from hfray.completion import Completion, Prompt
from hfray.params import GenerationParams

TIDY = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")]
TIDY += [(f" '{end}", f"'{end}") for end in ("m", "s", "ve", "re")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How one call generates, and how its text is assembled.

    Attributes:
        full_text: return the prompt before the completion.
        clean_up: remove the spaces before punctuation, as transformers does.
        prefix: text that the model reads before every prompt; the returned text does not contain it.
        sample: the number that row seeds are derived from, so that two unseeded calls draw different texts.
    """

    params: GenerationParams
    full_text: bool
    clean_up: bool
    add_special_tokens: bool
    prefix: str
    sample: int

    def prompt(self, text: str) -> Prompt:
        """The prompt for the engine loop."""
        return Prompt(self.prefix + text, special_tokens_in_text=not self.add_special_tokens)

    def text(self, prompt: str, completion: Completion) -> str:
        """The text that the caller gets."""
        new = completion.text or ""
        if self.clean_up:  # of prompt and completion together, as in transformers: they may meet at a " ."
            new = tidy(prompt + new)[len(tidy(prompt)) :]
        return prompt + new if self.full_text else new


def tidy(text: str) -> str:
    """Remove the spaces that tokenizers leave before punctuation: transformers' `clean_up_tokenization`."""
    for spaced, closed in TIDY:
        text = text.replace(spaced, closed)
    return text
