"""transformers and torch on a CPU, a GPU, or a device map: a continuous batcher over the model's own forward.

The engine prefills new prompts of similar length together, within a token budget. The prompts then join the running
rows, and finished rows leave. The engine uses only what `generate` uses of an architecture, so it also batches BLOOM
(ALiBi) and GPT-2 (learned positions).
"""

from __future__ import annotations

import gc
import inspect
from pathlib import Path
from typing import Any, cast

import torch

from hfray.engines.base import Engine, Request, RequestError, StepOutput
from hfray.engines.capacity import CPU_CAPACITY, MAX_CAPACITY, ROW_TOKENS
from hfray.engines.guides import Guides
from hfray.engines.precision import precision_of
from hfray.engines.torch.checkpoint import TransformersTokenizer, end_ids, load_model, load_tokenizer
from hfray.engines.torch.grouped_attention import use_grouped_attention
from hfray.engines.torch.kvcache import BatchCache
from hfray.engines.torch.masks import TokenMasks
from hfray.engines.torch.packed_linear import pack_linears
from hfray.engines.torch.sampling import Row, Sampler
from hfray.engines.waiting import ExpectedLength
from hfray.models.folder import context_length
from hfray.response import ResponseFormat

LARGE_PREFILL = 512  # tokens; a prefill of this size leaves out rows that would add much padding
PADDING_SHARE = 8  # 1/8 of the tokens of a large prefill may be padding
REFILL_SHARE = 8  # new rows join and finished rows are dropped when 1/8 of the batch is free
KV_SHARE = 0.7  # share of the device memory left free by the weights


class TransformersEngine(Engine):
    """A causal language model of transformers as a continuous batcher.

    Args:
        model: a loaded `PreTrainedModel` with a language-modelling head.
        tokenizer: its tokenizer.
        capacity: rows run at once; None chooses by the device's free memory (32 on a CPU). When the device runs out of
            memory, the capacity is halved, and the running rows resume from their tokens.
        batch_tokens: the maximum number of prompt tokens, padding included, in one prefill.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: TransformersTokenizer,
        *,
        capacity: int | None = None,
        batch_tokens: int = 8192,
        context: int | None = None,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.context_length = context
        self.precision = precision_of(model)
        self.capacity = capacity or default_capacity(model)
        self._batch_tokens = batch_tokens
        self.end_at(end_ids(model, tokenizer))
        accepted = inspect.signature(model.forward).parameters
        self._with_positions = "position_ids" in accepted
        self._last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._waiting: list[Row] = []
        self._rows: list[Row | None] = []  # None: finished, and not yet removed from the batch
        self._batch: BatchCache | None = None
        self._expected = ExpectedLength()

    @classmethod
    def from_folder(cls, folder: Path, *, trust_remote_code: bool = False, **options: Any) -> TransformersEngine:
        """Load model and tokenizer; `options` are passed to `load_model` and the engine."""
        tokenizer = load_tokenizer(folder, trust_remote_code)
        mine = {name: options.pop(name) for name in ("capacity", "batch_tokens") if name in options}
        model = load_model(folder, trust_remote_code=trust_remote_code, **options)
        if options.get("attention") is None:
            use_grouped_attention(model)
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

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        try:
            if self._waiting and self._has_room():
                return self._prefill()
            return self._decode()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return self._shrink(error)

    def cancel(self, request_id: int) -> None:
        self._guides.forget(request_id)
        self._waiting = [row for row in self._waiting if row.request.id != request_id]
        for i, row in enumerate(self._rows):
            if row is not None and row.request.id == request_id:
                self._rows[i] = None

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + self._alive()

    def close(self) -> None:
        self._batch, self._rows, self._waiting, self.model = None, [], [], None

    # --- one step ----------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        free = self.capacity - self._alive()
        return free >= max(1, self.capacity // REFILL_SHARE) or (free > 0 and free >= len(self._waiting))

    def _prefill(self) -> list[StepOutput]:
        self._thin_out()
        rows = self._take_waiting()
        ids = [row.ids for row in rows]
        length = max(map(len, ids))
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        padded = torch.full((len(rows), length), min(self.end_ids, default=0))
        for i, row_ids in enumerate(ids):
            padded[i, length - len(row_ids) :] = torch.tensor(row_ids)
            mask[i, length - len(row_ids) :] = 1
        try:
            batch = BatchCache(mask.to(self.model.device))
            logits = self._forward(padded, batch)
        except BaseException:
            self._waiting[:0] = rows  # after an out-of-memory error the rows run later
            raise
        if self._batch is None:
            self._batch, self._rows = batch, list(rows)
        else:
            self._rows.extend(rows)
            self._batch.merge(batch)
        self.num_running = len(rows)
        return self._accept(rows, logits)

    def _decode(self) -> list[StepOutput]:
        if len(self._rows) - self._alive() > len(self._rows) // REFILL_SHARE:
            self._thin_out()
        alive = [(i, row) for i, row in enumerate(self._rows) if row is not None]
        self.num_running = len(alive)
        if self._batch is None or not alive:
            self._batch, self._rows = None, []
            return []
        last = torch.tensor([[row.tokens[-1] if row else 0] for row in self._rows])
        self._batch.extend_mask([row is not None for row in self._rows])
        logits = self._forward(last, self._batch)
        index = torch.tensor([i for i, _ in alive], device=logits.device)
        return self._accept([row for _, row in alive], logits[index])

    def _forward(self, ids: torch.Tensor, batch: BatchCache) -> torch.Tensor:
        """Run the model over new positions; returns the last position's logits [rows, vocabulary]."""
        inputs: dict[str, Any] = dict(self._last_logits_only)
        if self._with_positions:
            inputs["position_ids"] = (batch.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids.to(self.model.device),
            attention_mask=batch.mask,
            past_key_values=batch.cache,
            use_cache=True,
            **inputs,
        )
        return output.logits[:, -1]

    def _accept(self, rows: list[Row], logits: torch.Tensor) -> list[StepOutput]:
        outputs = []
        allowed = self._masks.apply(logits, [row.request for row in rows])
        for i, (row, token) in enumerate(zip(rows, self._sampler.pick(allowed, rows), strict=True)):
            params, output = row.request.params, StepOutput(row.request.id)
            ended = token in self.end_ids and not (params.ignore_eos and params.response is None)
            if not ended:
                row.tokens.append(token)
                output.token_ids.append(token)
                if params.logprobs is not None:
                    output.logprobs.append(self._sampler.logprobs(logits[i], row, token))
                ended = self._complete(row, token, output)
            if ended or len(row.tokens) >= row.request.max_new_tokens:
                output.finish_reason = "stop" if ended else "length"
            if output.finish_reason or output.error:
                self._guides.forget(row.request.id)
                self._expected.observe(len(row.request.prompt_ids), len(row.tokens))
                self._rows[self._rows.index(row)] = None
            outputs.append(output)
        return outputs

    def _complete(self, row: Row, token: int, output: StepOutput) -> bool:
        """Whether the token completes an answer that has a form."""
        try:
            return self._guides.advance(row.request, token)
        except RequestError as error:
            output.error = str(error)
            return False

    # --- the batch ---------------------------------------------------------------------------------------------

    def _alive(self) -> int:
        return sum(row is not None for row in self._rows)

    def _take_waiting(self) -> list[Row]:
        """The longest waiting prompts of similar length that fit the free rows and the token budget. When no more
        prompts will come: those with the longest expected completions."""
        free = self.capacity - self._alive()
        if self.ending:
            self._waiting.sort(key=lambda row: self._expected.of(row.request) - len(row.tokens), reverse=True)
        else:
            self._waiting.sort(key=lambda row: len(row.ids), reverse=True)
        first = sorted(self._waiting[:free], key=lambda row: len(row.ids), reverse=True)
        count = prefill_size([len(row.ids) for row in first], self._batch_tokens)
        self._waiting[:free] = first[count:]
        return first[:count]

    def _thin_out(self) -> None:
        keep = [i for i, row in enumerate(self._rows) if row is not None]
        if len(keep) == len(self._rows):
            return
        if self._batch is not None and keep:
            self._batch.keep(keep)
        else:
            self._batch = None
        self._rows = [self._rows[i] for i in keep]

    def _shrink(self, error: BaseException) -> list[StepOutput]:
        """Halve the capacity; the running rows resume later from their tokens."""
        rows = [row for row in self._rows if row is not None]
        if self.capacity == 1:
            row = (rows or self._waiting)[0]
            self.cancel(row.request.id)
            self._batch, self._rows = None, []
            return [StepOutput(row.request.id, error=f"out of memory with this row alone: {error}")]
        self.capacity = max(1, self.capacity // 2)
        self._waiting.extend(rows)
        self._batch, self._rows, self.num_running = None, [], 0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return []


def prefill_size(lengths: list[int], batch_tokens: int) -> int:
    """How many prompts to prefill at once: at least one, at most `batch_tokens` tokens with padding. A large prefill
    leaves out prompts that would add mostly padding.

    Args:
        lengths: in tokens, the longest first.
    """
    tokens = 0
    for count, length in enumerate(lengths):
        padded = lengths[0] * (count + 1)
        if count and padded > batch_tokens:
            return count
        if tokens >= LARGE_PREFILL and padded - tokens - length > padded // PADDING_SHARE:
            return count
        tokens += length
    return len(lengths)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory; its CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def default_capacity(model: Any) -> int:
    """How many rows fit the device's free memory at `ROW_TOKENS` tokens each; 32 on a CPU."""
    if model.device.type != "cuda":
        return CPU_CAPACITY
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row_bytes = ROW_TOKENS * 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(MAX_CAPACITY, int(free * KV_SHARE / row_bytes)))
