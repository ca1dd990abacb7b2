"""One request in the engine, with the handles that wait for it, from its tokens to its completion."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hfray.completion import Completion, Prompt
from hfray.engines.base import Engine, Request, RequestError, StepOutput
from hfray.inference.detokenizer import CompletionText
from hfray.inference.handle import Handle
from hfray.inference.stats import Progress
from hfray.inference.validator import validator_of
from hfray.reasoning import split_reasoning

RETRY_TEMPERATURE = 0.7  # of a greedy row that is tried again: greedy, it would write the same text
MORE_ROOM = 2  # times the tokens of the try before, for an answer that was cut


@dataclass(slots=True)
class EngineSequence:
    """One request in the engine, and the handles that wait for it: the leader's and its followers'.

    Attributes:
        sample: number or row id, which decides the random numbers.
        attempt: 1 for the first try; more if earlier answers did not have the form that they must have.
    """

    request: Request
    prompt: Prompt
    sample: int | str
    text: CompletionText
    handles: list[Handle]
    key: bytes | None = None
    attempt: int = 1
    progress: Progress = field(default_factory=Progress)
    logprobs: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)

    def completion(self, output: StepOutput) -> Completion:
        """The completion after the last output. An answer that must have a form is checked."""
        completion = Completion(num_prompt_tokens=len(self.request.prompt_ids), error=output.error)
        if output.error is not None:
            return completion
        completion.text = self.text.text
        completion.finish_reason = "stop" if self.text.stopped else output.finish_reason or "stop"
        completion.num_generated_tokens = self.progress.generated
        completion.token_ids = self.text.token_ids
        completion.logprobs = self.logprobs
        form = self.request.params.response
        if self.request.params.split_reasoning or (form is not None and form.after_thought):
            completion.reasoning, completion.text = split_reasoning(completion.text)
        if form is not None and form.retries is not None:
            completion.num_attempts = self.attempt
            completion.response, completion.error = validator_of(form).check(completion.text, completion.finish_reason)
        return completion

    def next_try(self, completion: Completion, engine: Engine, request_id: int) -> EngineSequence | None:
        """The same prompt once more, for an answer that does not fit; None if it fits or no try is left.

        An answer that was cut gets more room, any other one another random draw. Both depend on the row and the number
        of the try alone, so that the text does not depend on the batch. A stream, which somebody has read, gets no
        other text.
        """
        form = self.request.params.response
        tries = 1 if form is None or self.handles[0].streams else 1 + (form.retries or 0)
        if completion.error is None or not completion.num_attempts or self.attempt >= tries:
            return None
        attempt, params, room = self.attempt + 1, self.request.params, self.request.max_new_tokens
        if completion.finish_reason == "length":
            room = self._more_room(engine)
        if room == self.request.max_new_tokens or attempt > 2:
            warmer = params.temperature if params.sampling else RETRY_TEMPERATURE
            params = replace(params, do_sample=None if params.sampling else True, temperature=warmer)
        seed = params.row_seed(self.prompt.text, f"{self.sample}/{attempt}") if params.sampling else 0
        request = replace(self.request, id=request_id, params=params, max_new_tokens=room, seed=seed)
        before = request.prompt_ids if engine.continues_prompt else []
        text = CompletionText(engine.tokenizer, before, params.stop_strings)
        for handle in self.handles:
            handle.request_id = request_id
        return EngineSequence(request, self.prompt, self.sample, text, self.handles, self.key, attempt)

    def _more_room(self, engine: Engine) -> int:
        params = replace(self.request.params, max_new_tokens=MORE_ROOM * self.request.max_new_tokens)
        try:
            return engine.room(params, len(self.request.prompt_ids))
        except RequestError:
            return self.request.max_new_tokens
