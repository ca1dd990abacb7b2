"""The thoughts of reasoning models: texts between tags, before the answer."""

from __future__ import annotations

# Of Qwen, DeepSeek, SmolLM and most others; of Claude-like finetunes; of Mistral's Magistral.
TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
)
END_OF_THOUGHT = TAGS[0][1]


def split_reasoning(text: str) -> tuple[str | None, str]:
    """The thought and the answer of a text.

    The opening tag may be part of the prompt, where the model's chat template ends with it. A thought that was cut
    leaves no answer. A text without tags has no thought.
    """
    for opening, closing in TAGS:
        before, found, after = text.partition(closing)
        begun = before.lstrip().startswith(opening)
        if found or begun:
            thought = before.lstrip().removeprefix(opening) if begun else before
            return thought.strip(), after.lstrip()
    return None, text
