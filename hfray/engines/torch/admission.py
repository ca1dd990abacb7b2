"""How many rows may run together: by their number, and by the rectangle that the KV cache takes in memory.

All rows of a batch take as many positions as the longest one. A very long row therefore waits until a few others run,
or until several long rows can run together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hfray.engines.base import Engine
from hfray.engines.torch.kvcache import GROW_BY
from hfray.engines.torch.row import Row

REFILL_SHARE = 8  # new rows join and finished rows are dropped when 1/8 of the batch is free
LARGE_PREFILL = 512  # tokens; a prefill of this size leaves out rows that would add much padding
PADDING_SHARE = 8  # 1/8 of the tokens of a large prefill may be padding
PATIENCE = 64  # refills; a long row that has been passed so often runs as soon as it fits
CALM_STEPS = 256  # steps without running out of memory before the limits rise
MAX_CALM_STEPS = 8192


class Admission:
    """The limits of a batch. They fall when the device runs out of memory, and rise again afterwards.

    Args:
        rows: the maximum number of rows.
        prefill_tokens: the maximum number of prompt tokens, padding included, in one prefill.
        positions: slots times positions that the KV cache has memory for; None: unknown, so no limit.
    """

    def __init__(self, rows: int, prefill_tokens: int, positions: int | None = None) -> None:
        self.rows, self.prefill_tokens, self.positions = rows, prefill_tokens, positions
        self._most = (rows, prefill_tokens, positions)
        self._calm_steps = CALM_STEPS
        self._step = 0

    def limit(self, rows: int) -> None:
        """Run at most so many rows from now on."""
        self.rows, self._most = rows, (rows, *self._most[1:])

    def slots_for(self, length: int) -> int:
        """How many rows may run together if the longest gets `length` tokens; at least one."""
        if self.positions is None:
            return self.rows
        return max(1, min(self.rows, self.positions // (length + GROW_BY)))

    def choose(self, waiting: Sequence[Row], running: Sequence[Row], final: Callable[[Row], int]) -> list[Row]:
        """The rows to start beside the running ones: those of `waiting`, in their order, that fit.

        Args:
            final: the length in tokens that a row may reach.
        """
        free = self.rows - len(running)
        if self.positions is None or not waiting or free <= 0:
            return list(waiting[: max(0, free)])
        chosen, passed = list[Row](), list[Row]()
        longest = max(map(final, running), default=0)
        typical = sorted(map(final, waiting))[len(waiting) // 2]
        usual = min(len(running) + len(waiting), self.slots_for(max(longest, typical)))
        for row in waiting:
            slots, patient = self.slots_for(max(longest, final(row))), row.passed < PATIENCE
            fits = len(running) + len(chosen) < slots
            costly = final(row) > longest and 2 * slots < usual  # it would halve the number of rows
            if fits and not (costly and patient):
                chosen.append(row)
                longest = max(longest, final(row))
            elif not chosen and not patient:
                return []  # start nothing until it fits
            elif not chosen:
                passed.append(row)
            if len(chosen) == free:
                break
        if not running:
            return chosen or list(waiting[:1])
        enough = min(len(waiting), max(1, self.slots_for(longest) // REFILL_SHARE))
        if len(chosen) < enough and all(row.passed < PATIENCE for row in chosen):
            return []  # a prefill of few rows costs as much as a step of all rows
        for row in passed:
            row.passed += 1
        return chosen

    def shrink(self, rows: int, tokens: int, positions: int) -> None:
        """Lower the limits after running out of memory.

        Args:
            rows, tokens, positions: what the failed step tried: rows, prompt tokens, slots times positions.
        """
        self.rows = -(-min(self.rows, rows) // 2)  # rounded up: 3 rows may be too many, and 2 fit
        self.prefill_tokens = max(1, min(self.prefill_tokens, tokens or self.prefill_tokens) // 2)
        if self.positions is not None:
            self.positions = max(1, min(self.positions, positions or self.positions) // 2)
        self._step = 0
        self._calm_steps = min(2 * self._calm_steps, MAX_CALM_STEPS)

    def rise(self) -> None:
        """Count a step that went well; after enough of them, raise lowered limits by half."""
        self._step += 1
        if self._step < self._calm_steps or (self.rows, self.prefill_tokens, self.positions) == self._most:
            return
        self._step = 0
        rows, tokens, positions = self._most
        self.rows = min(rows, self.rows + max(1, self.rows // 2))
        self.prefill_tokens = min(tokens, self.prefill_tokens + max(1, self.prefill_tokens // 2))
        if self.positions is not None and positions is not None:
            self.positions = min(positions, self.positions + max(1, self.positions // 2))


class AdmittingEngine(Engine):
    """An engine that runs as many rows as its admission allows."""

    _admission: Admission

    @property
    def capacity(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The maximum number of rows in a batch; it falls for a while when memory runs out."""
        return self._admission.rows

    @capacity.setter
    def capacity(self, rows: int) -> None:
        self._admission.limit(rows)


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
