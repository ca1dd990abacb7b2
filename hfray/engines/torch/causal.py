"""transformers and torch on a CPU, a GPU, or a device map: a continuous batcher over the model's own forward.

The engine prefills new prompts of similar length together, within a token budget. The prompts then take the slots of
finished rows. The engine uses only what `generate` uses of an architecture, so it also batches BLOOM (ALiBi) and GPT-2
(learned positions). The CPU waits for the device once in a step, to read the new tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from hfray.engines.base import Request, RequestError, StepOutput
from hfray.engines.guides import Guides
from hfray.engines.precision import precision_of
from hfray.engines.torch.admission import REFILL_SHARE, Admission, AdmittingEngine, prefill_size
from hfray.engines.torch.batch import RunningBatch
from hfray.engines.torch.bloom import use_device_masks
from hfray.engines.torch.checkpoint import TransformersTokenizer, end_ids, load_model, load_tokenizer
from hfray.engines.torch.grouped_attention import use_grouped_attention
from hfray.engines.torch.kvcache import GROW_BY, BatchCache
from hfray.engines.torch.masks import TokenMasks
from hfray.engines.torch.memory import default_rows, free_positions, out_of_memory, release
from hfray.engines.torch.packed_linear import pack_linears
from hfray.engines.torch.row import Row, padded_ids
from hfray.engines.torch.sampling import Picked, Sampler
from hfray.engines.torch.transfer import to_device
from hfray.engines.waiting import ExpectedLength
from hfray.models.folder import context_length
from hfray.response import ResponseFormat


class TransformersEngine(AdmittingEngine):
    """A causal language model of transformers as a continuous batcher.

    Args:
        model: a loaded `PreTrainedModel` with a language-modelling head.
        tokenizer: its tokenizer.
        capacity: rows run at once; None chooses by the device's free memory (32 on a CPU). When the device runs out of
            memory, the capacity falls for a while, and the running rows resume from their tokens.
        batch_tokens: the maximum number of prompt tokens, padding included, in one prefill.
        kv_positions: rows times positions that the KV cache may take; None: what the GPU's free memory holds.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: TransformersTokenizer,
        *,
        capacity: int | None = None,
        batch_tokens: int = 8192,
        kv_positions: int | None = None,
        context: int | None = None,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.context_length = context
        self.precision = precision_of(model)
        positions = kv_positions or free_positions(model)
        self._admission = Admission(capacity or default_rows(positions), batch_tokens, positions)
        self.end_at(end_ids(model, tokenizer))
        accepted = inspect.signature(model.forward).parameters
        self._with_positions = "position_ids" in accepted
        self._last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._waiting: list[Row] = []
        self._expected = ExpectedLength()
        self._batch = RunningBatch()
        self._blocked = False  # no waiting row fits until a row ends or another comes
        self._tried = (0, 0)  # rows and length of this step's prefill

    @classmethod
    def from_folder(cls, folder: Path, *, trust_remote_code: bool = False, **options: Any) -> TransformersEngine:
        """Load model and tokenizer; `options` are passed to `load_model` and the engine."""
        tokenizer = load_tokenizer(folder, trust_remote_code)
        names = ("capacity", "batch_tokens", "kv_positions")
        mine = {name: options.pop(name) for name in names if name in options}
        model = load_model(folder, trust_remote_code=trust_remote_code, **options)
        if options.get("attention") is None:
            use_grouped_attention(model)
            use_device_masks(model)
        engine = cls(model, tokenizer, context=context_length(folder), **mine)
        if options.get("device_map") is None:
            pack_linears(model, engine.capacity)
        return engine

    def end_at(self, token_ids: set[int]) -> None:
        """Set the token ids that end a completion."""
        self.end_ids = token_ids
        self._sampler = Sampler(token_ids)
        tokenizer = cast("TransformersTokenizer", self.tokenizer)
        self._guides = Guides(lambda: tokenizer.guide_tokenizer(sorted(token_ids)))
        self._masks = TokenMasks(self._guides)

    def prepare(self, form: ResponseFormat) -> None:
        self._guides.prepare(form)

    def add(self, request: Request) -> None:
        self._waiting.append(Row(request))
        self._blocked = False

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        try:
            outputs = self._advance()
        except (torch.OutOfMemoryError, RuntimeError) as caught:
            if not out_of_memory(caught):
                raise
            error = str(caught)
        else:
            self._admission.rise()
            return outputs
        return self._shrink(error)  # after the `except`, so that the traceback no longer keeps tensors

    def cancel(self, request_id: int) -> None:
        self._guides.forget(request_id)
        self._waiting = [row for row in self._waiting if row.request.id != request_id]
        for slot, row in self._batch.running():
            if row.request.id == request_id:
                self._leave(slot)

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + self._batch.alive

    def close(self) -> None:
        self._batch, self._waiting, self.model = RunningBatch(), [], None

    # --- one step ----------------------------------------------------------------------------------------------

    def _advance(self) -> list[StepOutput]:
        if self._waiting and not self._blocked and self._has_room():
            rows = self._take_waiting()
            if rows:
                return self._prefill(rows)
            self._blocked = True
        return self._decode()

    def _has_room(self) -> bool:
        free = self.capacity - self._batch.alive
        return free >= max(1, self.capacity // REFILL_SHARE) or (free > 0 and free >= len(self._waiting))

    def _prefill(self, rows: list[Row]) -> list[StepOutput]:
        self._tried = (len(rows), max(row.length for row in rows))
        try:
            logits, cache = self._forward_prompts(rows)
            slots = self._batch.put_cache(cache, len(rows))
            picked = self._pick(logits, rows)
            self._batch.put(slots, rows, picked.on_device)
        except BaseException:
            self._waiting[:0] = rows  # after an out-of-memory error the rows run later
            raise
        self.num_running = len(rows)
        return [self._report(slot, row, i, picked) for i, (slot, row) in enumerate(zip(slots, rows, strict=True))]

    def _forward_prompts(self, rows: list[Row]) -> tuple[torch.Tensor, BatchCache]:
        """The logits [rows, vocabulary] after the rows' tokens, and their KV cache."""
        length = max(row.length for row in rows)
        table = to_device(padded_ids(rows, min(self.end_ids, default=0)), self.model.device, torch.long)
        mask = (torch.arange(length, device=table.device) >= table[:, :1]).long()
        batch = BatchCache(mask)
        padded = min(row.length for row in rows) < length
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return self._forward(table[:, 1:], positions, batch, masked=padded), batch

    def _decode(self) -> list[StepOutput]:
        self._tried = (0, 0)
        self._waiting.extend(self._batch.tidy(self._admission))
        batch = self._batch
        self.num_running = batch.alive
        if batch.cache is None:
            return []
        positions = batch.cache.extend()
        logits = self._forward(batch.last[:, None], positions, batch.cache)
        picked = self._pick(logits, batch.rows)
        batch.last = picked.on_device
        return [self._report(slot, row, slot, picked) for slot, row in batch.running()]

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, batch: BatchCache, masked: bool = True
    ) -> torch.Tensor:
        """Run the model over new positions; returns the last position's logits [rows, vocabulary].

        Args:
            masked: False if the batch has no padding; the model may then use faster attention.
        """
        inputs: dict[str, Any] = dict(self._last_logits_only)
        if self._with_positions:
            inputs["position_ids"] = positions
        mask = batch.mask if masked else None
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=batch.cache, use_cache=True, **inputs)
        return output.logits[:, -1]

    def _pick(self, logits: torch.Tensor, rows: Sequence[Row | None]) -> Picked:
        allowed = self._masks.apply(logits, [None if row is None else row.request for row in rows])
        return self._sampler.pick(logits, rows, allowed)

    def _report(self, slot: int, row: Row, index: int, picked: Picked) -> StepOutput:
        """Append the row's token, the one at `index` of `picked`."""
        request, token = row.request, picked.tokens[index]
        output = StepOutput(request.id)
        ended = token in self.end_ids and not (request.params.ignore_eos and request.params.response is None)
        if not ended:
            row.tokens.append(token)
            output.token_ids.append(token)
            if index in picked.logprobs:
                output.logprobs.append(picked.logprobs[index])
            try:
                ended = self._guides.advance(request, token)
            except RequestError as error:
                output.error = str(error)
        if ended or len(row.tokens) >= request.max_new_tokens:
            output.finish_reason = "stop" if ended else "length"
        if output.finish_reason or output.error:
            self._guides.forget(request.id)
            self._expected.observe(len(request.prompt_ids), len(row.tokens))
            self._leave(slot)
        return output

    # --- the batch ---------------------------------------------------------------------------------------------

    def _leave(self, slot: int) -> None:
        self._batch.leave(slot)
        self._blocked = False

    def _take_waiting(self) -> list[Row]:
        """The longest waiting prompts of similar length that fit the free rows, the memory and the token budget. When
        no more prompts will come: those with the longest expected completions."""
        if self.ending:
            self._waiting.sort(key=lambda row: self._expected.of(row.request) - len(row.tokens), reverse=True)
        else:
            self._waiting.sort(key=lambda row: row.length, reverse=True)
        running = [row for _, row in self._batch.running()]
        chosen = self._admission.choose(self._waiting, running, self._final_length)
        chosen.sort(key=lambda row: row.length, reverse=True)
        chosen = chosen[: prefill_size([row.length for row in chosen], self._admission.prefill_tokens)]
        taken = set(map(id, chosen))
        self._waiting = [row for row in self._waiting if id(row) not in taken]
        return chosen

    def _final_length(self, row: Row) -> int:
        """The tokens that a row may reach, by the longest completion so far."""
        new = row.request.max_new_tokens
        if self._expected.longest is not None:
            new = min(new, max(self._expected.longest, len(row.tokens) + GROW_BY))
        return len(row.request.prompt_ids) + new

    def _shrink(self, error: str) -> list[StepOutput]:
        """Lower the limits; the running rows resume later from their tokens."""
        running, (rows, length) = [row for _, row in self._batch.running()], self._tried
        self._batch = RunningBatch()
        release()
        if self.capacity == 1:
            row = (running or self._waiting)[0]
            self.cancel(row.request.id)
            return [StepOutput(row.request.id, error=f"out of memory with this row alone: {error}")]
        longest = max([length, *(row.length for row in running)])
        self._admission.shrink(len(running) + rows, rows * length, (len(running) + rows) * (longest + GROW_BY))
        self._waiting.extend(running)
        return []
