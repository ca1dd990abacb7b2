"""Completions as LangChain's result objects."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Sequence

from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from hfray.completion import Completion
from hfray.langchain.call import Call
from hfray.langchain.pipeline import LocalPipeline


def result(local: LocalPipeline, call: Call, prompts: Sequence[str], completions: Sequence[Completion]) -> LLMResult:
    """The texts of a call, each with its metadata."""
    rows = zip(prompts, completions, strict=True)
    return LLMResult(
        generations=[[Generation(text=call.text(p, c), generation_info=info(local, call, c))] for p, c in rows]
    )


def info(local: LocalPipeline, call: Call, completion: Completion) -> dict[str, object]:
    """The metadata of a completion; log-probabilities only if the call asked for them."""
    found: dict[str, object] = {
        "finish_reason": completion.finish_reason,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "num_generated_tokens": completion.num_generated_tokens,
    }
    if call.params.logprobs is not None:
        found["logprobs"] = local.logprobs(completion)
    return found


def chunks(local: LocalPipeline, prompt: str, call: Call) -> Generator[GenerationChunk, None, None]:
    """A stream's chunks. The last one carries the metadata, so every chunk waits for the piece of text after it."""
    last: GenerationChunk | None = None
    with contextlib.closing(local.stream(prompt, call)) as pieces:
        for piece in pieces:
            if isinstance(piece, Completion):
                yield _final(local, call, piece, last)
                return
            if last is not None:
                yield last
            last = GenerationChunk(text=piece)


async def achunks(local: LocalPipeline, prompt: str, call: Call) -> AsyncGenerator[GenerationChunk, None]:
    """As `chunks`."""
    last: GenerationChunk | None = None
    async with contextlib.aclosing(local.astream(prompt, call)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Completion):
                yield _final(local, call, piece, last)
                return
            if last is not None:
                yield last
            last = GenerationChunk(text=piece)


def _final(local: LocalPipeline, call: Call, completion: Completion, last: GenerationChunk | None) -> GenerationChunk:
    text = "" if last is None else last.text  # LangChain needs one chunk, even without text
    return GenerationChunk(text=text, generation_info=info(local, call, completion))
